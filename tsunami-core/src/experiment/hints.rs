//! What people reach for that has another name here, or another way.

/// Words that are no keys, a key that is known where they are reached for, and how it is done here. The first
/// that fits holds.
const INSTEAD: &[(&[&str], &str, &str)] = &[
    (
        &["machines", "nodes", "instances", "servers", "vms", "num_nodes", "replicas", "size"],
        "count",
        "`count = 3` is how many machines a group has",
    ),
    (
        &["machines", "nodes", "instances", "servers", "vms", "num_nodes", "count", "resources", "cluster"],
        "group",
        "machines are in groups: `[group.server]`, with `count = 3` for more than one",
    ),
    (&["groups", "roles"], "group", "each group is a table of its own: `[group.server]`"),
    (&["steps", "tasks", "jobs", "stages", "phases"], "step", "each step is a `[[step]]`, in order"),
    (&["setup", "upload", "env"], "group", "it belongs in a group: `[group.server]`"),
    (&["run", "start", "collect"], "step", "it belongs in a step: `[[step]]`"),
    (
        &["command", "cmd", "commands", "shell", "script", "exec", "args", "entrypoint"],
        "start",
        "the command is `run`, or `start` if it goes on in the background; a script is uploaded, and run by its name",
    ),
    (&["command", "cmd", "commands", "shell", "exec"], "run", "the command is `run`"),
    (
        &["install", "packages", "apt", "provision", "bootstrap", "commands", "script", "run"],
        "setup",
        "`setup = [\"sudo apt-get install -yq redis-server\"]` prepares each machine; a script is `{ script = \"setup.sh\" }`",
    ),
    (
        &["files", "copy", "sync", "rsync", "file_mounts", "uploads"],
        "upload",
        "`upload = [{ from = \"load\", to = \"bin/load\" }]` brings files to each machine",
    ),
    (
        &["src", "source", "local", "path"],
        "from",
        "an upload is `{ from = \"…\", to = \"…\" }`: from here, to the machine",
    ),
    (&["dst", "dest", "destination", "remote", "target"], "to", "where it goes on the machine is `to`"),
    (&["ignore", "excludes", "skip"], "exclude", "what stays here is `exclude`"),
    (
        &["artifacts", "outputs", "output", "download", "fetch", "results", "save"],
        "collect",
        "`collect = [\"out.csv\"]` brings files home",
    ),
    (
        &["depends_on", "needs", "after", "before", "requires"],
        "run",
        "steps are done in the order of the file: each begins when the one before has ended",
    ),
    (
        &["depends_on", "needs", "after", "requires"],
        "count",
        "all machines are set up at once, each by itself; what needs others is done in a step",
    ),
    (
        &["parallel", "concurrent", "async", "background", "detach"],
        "start",
        "a step is done on all its machines at once; what goes on beside later steps is a `start` in place of `run`",
    ),
    (
        &["wait", "wait_for", "wait_until", "healthcheck", "health_check", "readiness"],
        "ready",
        "`ready = { port = 6379 }` waits until what `start` began has come up",
    ),
    (&["sleep", "delay"], "run", "a command may `sleep`; to wait for a server, its `start` has `ready`"),
    (&["url", "path", "get", "endpoint"], "http", "`{ http = \"/health\", port = 8080 }` asks over HTTP"),
    (
        &["env_file", "secrets", "secret", "dotenv"],
        "env",
        "`env = { TOKEN = { from_env = \"TOKEN\" } }` takes a value from the environment of tsunami, and hides it",
    ),
    (&["environment", "envs", "environ"], "env", "`env = { NAME = \"value\" }` is the environment"),
    (&["workdir", "working_directory", "directory", "dir", "chdir"], "cwd", "the directory is `cwd`"),
    (
        &["host", "machine", "group", "target", "targets", "role", "nodes", "machines", "hosts"],
        "on",
        "where it is done is `on`: a group, a machine such as \"client-0\", a list of them, or \"all\"",
    ),
    (
        &["ignore_errors", "continue_on_error", "allow_failure", "on_failure"],
        "on_error",
        "`on_error = \"continue\"` goes on after a failure",
    ),
    (
        &["retry", "retries", "attempts"],
        "run",
        "no command is tried again by itself: `until …; do sleep 1; done` does it in the shell",
    ),
    (
        &["if", "when", "condition", "only_if"],
        "run",
        "a command decides for itself: `if …; then …; fi`; where it is done is `on`",
    ),
    (
        &["ttl", "max_duration", "deadline", "time_limit", "max_lifetime", "expires", "timeout"],
        "lifetime",
        "`lifetime = \"1h\"` ends every machine",
    ),
    (
        &["max_time", "deadline", "time_limit", "duration"],
        "timeout",
        "how long it may take is `timeout = \"5m\"`",
    ),
    (
        &["cloud", "backend", "platform", "driver"],
        "provider",
        "`provider` is \"local\", \"hosts\" or \"aws\"",
    ),
    (&["cost", "max_cost", "price_limit"], "budget", "`budget = 5.0` is the most it may cost, in US dollars"),
    (
        &["build", "before", "pre"],
        "prepare",
        "`prepare = [\"cargo build --release\"]` is done on this computer first",
    ),
    (
        &["runs", "iterations", "repetitions", "repeats", "trials_per_variant"],
        "repeat",
        "`repeat = 10` does each trial so often",
    ),
    (
        &["parameters", "params", "sweep", "grid"],
        "matrix",
        "`[matrix]` has parameters with all their values: every combination is a trial",
    ),
    (&["variables", "values", "defaults", "inputs"], "vars", "`[vars]` has values by their names"),
    (
        &["ami", "image_id", "os"],
        "image",
        "`image` is an alias such as \"ubuntu-24.04\", an id \"ami-…\", or \"ssm:/path\"",
    ),
    (
        &["instance_type", "instance_types", "type", "machine_type", "flavor", "vm_size"],
        "instance",
        "`instance` is a type such as \"c7g.large\", or a list of them",
    ),
    (
        &["spot", "use_spot", "preemptible", "spot_instances"],
        "market",
        "`market = \"spot\"` is that, and `[\"spot\", \"on-demand\"]` goes on to the other where there is none",
    ),
    (&["availability_zone", "az"], "zone", "the zone is `zone`"),
    (
        &["key_name", "keypair", "ssh_key", "private_key", "identity_file"],
        "ssh",
        "each run has keys of its own; for machines that exist, `[ssh] key` names one",
    ),
    (&["port", "ports", "expose"], "open_ports", "`open_ports` lets machines of other regions in"),
];

/// The help for a word that is no key among those known where it stands, if people are known to reach for it.
pub(super) fn instead<'k>(word: &str, known: impl Iterator<Item = &'k str> + Clone) -> Option<String> {
    let is_known = |key: &str| known.clone().any(|known| known == key);
    let fits = |(words, key, _): &&(&[&str], &str, &str)| words.contains(&word) && is_known(key);
    INSTEAD.iter().find(fits).map(|(_, _, help)| (*help).to_owned())
}

#[cfg(test)]
mod tests {
    use super::super::keys::{GROUP_KEYS, READY_KEYS, STEP_KEYS, TOP_KEYS, UPLOAD_KEYS, names};
    use super::*;

    /// Keys of other crates' providers and connectors that have hints here.
    const OTHERS: [&str; 6] = ["image", "instance", "market", "zone", "ssh", "open_ports"];

    #[test]
    fn every_word_that_is_reached_for_has_an_answer_and_is_no_key_itself() {
        let tables = [TOP_KEYS, GROUP_KEYS, STEP_KEYS, READY_KEYS, UPLOAD_KEYS];
        for (words, key, help) in INSTEAD {
            let of_key = tables.iter().filter(|table| names(table).any(|known| known == *key));
            assert!(OTHERS.contains(key) || of_key.clone().count() > 0, "{key} is no key");
            assert!(!help.ends_with('.'), "{help}");
            for word in *words {
                for table in of_key.clone() {
                    let known = names(table);
                    let is_key = known.clone().any(|known| known == *word);
                    assert!(is_key || instead(word, known).is_some(), "{word}");
                }
                assert!(instead(word, std::iter::once(*key)).is_some(), "{word}");
            }
        }
        assert_eq!(instead("ami", ["count"].into_iter()), None, "there are no images here");
    }
}
