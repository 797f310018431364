//! Who answers for AWS, and whom it takes the caller for.

use std::ffi::OsStr;
use std::fs;
use std::path::Path;

use serde_json::json;

use crate::cloud::Cloud;
use crate::emulator::Emulator;
use crate::world::Ended;

/// An experiment that a plan can be made of, with these lines about machines.
fn one(cloud: &Cloud, aws: &str) -> std::path::PathBuf {
    let text = format!(
        "name = \"one\"\nprovider = \"aws\"\n[aws]\nregion = \"eu-west-1\"\ninstance = \"c7g.large\"\nuser = \"root\"\n\
         ssh_from = \"127.0.0.1/32\"\n{aws}\n[group.a]\n"
    );
    cloud.world.write("one.toml", &text)
}

/// Writes a configuration file of AWS's, and says so in a command's environment.
fn profiles<'a>(
    cloud: &Cloud,
    command: &'a mut std::process::Command,
    text: &str,
) -> &'a mut std::process::Command {
    let file = cloud.world.write("aws.config", text);
    command.env("AWS_CONFIG_FILE", file).env_remove("AWS_ACCESS_KEY_ID").env_remove("AWS_SECRET_ACCESS_KEY")
}

fn ended(command: &mut std::process::Command) -> Ended {
    Ended::from(command.output().unwrap())
}

#[test]
fn a_profile_of_a_way_to_sign_in_that_is_not_known_is_said_in_the_users_words() {
    let cloud = Cloud::with(Emulator::without_machines());
    let text = "[profile dev]\nregion = eu-west-1\nlogin_session = arn:aws:iam::123456789012:user/me\n";
    let words = ["signs in by `aws login`", "export-credentials"];
    let file = one(&cloud, "profile = \"dev\"");
    let mut plan = cloud.command([OsStr::new("plan"), file.as_os_str()]);
    let named = ended(profiles(&cloud, &mut plan, text));
    let file = one(&cloud, "");
    let mut plan = cloud.command([OsStr::new("plan"), file.as_os_str()]);
    let from_environment = ended(profiles(&cloud, &mut plan, text).env("AWS_PROFILE", "dev"));
    for said in [named, from_environment] {
        said.assert_status(3).assert_says(&words);
        assert!(!said.stderr.contains("cargo"), "{}", said.stderr);
    }
    // What the help names works: the same credentials as variables.
    cloud.tsunami([OsStr::new("plan"), file.as_os_str()]).assert_status(0);
    cloud.assert_clean();
}

#[test]
fn the_certificates_of_the_bundle_that_is_named_are_those_that_count() {
    let cloud = Cloud::with(Emulator::with_tls());
    let file = one(&cloud, "");
    let plan = || {
        let mut plan = cloud.command([OsStr::new("plan"), file.as_os_str()]);
        plan.env("AWS_ENDPOINT_URL", cloud.emulator.secure_endpoint());
        plan
    };
    let bundle = cloud.emulator.certificate();
    ended(plan().env("AWS_CA_BUNDLE", &bundle)).assert_status(0);
    let profile = format!("[default]\nca_bundle = {}\n", bundle.display());
    let keys = |command: &mut std::process::Command| {
        command.env("AWS_ACCESS_KEY_ID", "test").env("AWS_SECRET_ACCESS_KEY", "test");
    };
    let mut by_profile = plan();
    keys(profiles(&cloud, &mut by_profile, &profile));
    ended(&mut by_profile).assert_status(0);
    // Nobody else vouches for it.
    ended(&mut plan()).assert_status(3).assert_says(&["eu-west-1"]);
    let other = Emulator::with_tls();
    ended(plan().env("AWS_CA_BUNDLE", other.certificate())).assert_status(3);
    cloud.assert_clean();
}

#[test]
fn a_bundle_of_certificates_that_cannot_be_used_is_said_before_anything_is_asked() {
    let cloud = Cloud::with(Emulator::without_machines());
    let file = one(&cloud, "");
    let write = |name: &str, text: &str| cloud.world.write(name, text);
    let broken = "-----BEGIN CERTIFICATE-----\n*\n-----END CERTIFICATE-----\n";
    let mut cases = vec![
        (cloud.world.path("no-such.pem"), "can't be read: No such file"),
        (cloud.world.path("work"), "can't be read: Is a directory"),
        (write("empty.pem", ""), "has no certificate (PEM) in it"),
        (write("broken.pem", broken), "is no file of certificates (PEM)"),
    ];
    let odd = broken.replace('*', "AAAA");
    cases.push((write("odd.pem", &odd), "whose certificates can't be used"));
    for (bundle, why) in &cases {
        let mut plan = cloud.command([OsStr::new("plan"), file.as_os_str()]);
        let said = ended(plan.env("AWS_CA_BUNDLE", bundle));
        said.assert_status(2).assert_says(&[&format!("AWS_CA_BUNDLE names {}", bundle.display()), why]);
        assert!(!said.stderr.contains("panicked"), "{}", said.stderr);
    }
    let profile =
        "[profile dev]\nca_bundle = /no/such.pem\naws_access_key_id = test\naws_secret_access_key = test\n";
    let mut plan = cloud.command([OsStr::new("plan"), file.as_os_str()]);
    let said = ended(profiles(&cloud, &mut plan, profile).env("AWS_PROFILE", "dev"));
    said.assert_status(2).assert_says(&["`ca_bundle` of the profile names /no/such.pem"]);
    assert_eq!(cloud.emulator.calls().len(), 0);
    cloud.assert_clean();
}

#[test]
fn a_run_of_another_account_is_named_until_a_profile_of_that_account_is_set() {
    let cloud = Cloud::with(Emulator::without_machines());
    cloud.emulator.configure(json!({"callers": {"ELSEWHERE": "210987654321"}}));
    let profiles = "[profile own]\naws_access_key_id = test\naws_secret_access_key = test\n\
                    [profile other]\naws_access_key_id = ELSEWHERE\naws_secret_access_key = test\n";
    let config = cloud.world.write("aws.config", profiles);
    let with = |profile: &str, words: &[&OsStr]| {
        let mut command = cloud.command(words);
        command.env("AWS_CONFIG_FILE", &config).env("AWS_PROFILE", profile);
        command.env_remove("AWS_ACCESS_KEY_ID").env_remove("AWS_SECRET_ACCESS_KEY");
        command
    };
    let run = cut_off(&cloud, &mut with("own", &[OsStr::new("run"), one(&cloud, "").as_os_str()]));
    let down = [OsStr::new("down"), OsStr::new(&run)];
    let living = cloud.emulator.living();
    let id = living[0]["id"].as_str().unwrap();
    for words in [&down[..], &[OsStr::new("ls")]] {
        ended(&mut with("other", words)).assert_status(6).assert_says(&[
            &run,
            id,
            "the credentials are for account 210987654321, and the run is in account 123456789012",
            "set AWS_PROFILE to a profile of that account",
        ]);
    }
    assert_eq!(cloud.emulator.living().len(), 1);
    ended(&mut with("own", &down)).assert_status(0);
    cloud.assert_clean();
}

/// Begins a run of one machine that nothing listens on, and kills it when it has been launched. The run's id.
fn cut_off(cloud: &Cloud, command: &mut std::process::Command) -> String {
    let mut child =
        command.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null()).spawn().unwrap();
    crate::world::eventually("a machine is launched and known", || {
        let journal = |run: &String| {
            let directory = cloud.world.path("state/tsunami/runs").join(run).join("aws");
            is_settled(&directory)
        };
        match cloud.world.runs().iter().any(journal) {
            true => Ok(()),
            false => Err("no outcome is written down".to_owned()),
        }
    });
    child.kill().unwrap();
    child.wait().unwrap();
    cloud.world.runs().pop().unwrap()
}

fn is_settled(journal: &Path) -> bool {
    let files = fs::read_dir(journal).into_iter().flatten().flatten();
    let mut requests =
        files.filter(|file| file.file_name().to_string_lossy().starts_with("create-instances-"));
    requests.any(|file| fs::read_to_string(file.path()).is_ok_and(|text| text.contains("\"created\"")))
}
