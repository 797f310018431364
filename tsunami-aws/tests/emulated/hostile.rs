//! An endpoint that is not EC2, or not as honest: what it says does no harm.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use aws_config::timeout::TimeoutConfig;
use aws_config::{BehaviorVersion, Region, SdkConfig};
use aws_sdk_ec2::config::{Credentials, SharedCredentialsProvider};
use serde_json::json;
use tsunami_aws::limits::{PAGES_LIMIT, SERVICE_ANSWER_LIMIT};
use tsunami_aws::{Ec2Options, Ec2Provider};
use tsunami_core::{MachineSpec, Provider, ProviderError, RunFilter};

use crate::world::{REGION, World, listed, request, run_id, spec, terminate};

#[tokio::test(flavor = "multi_thread")]
async fn what_belongs_to_another_run_is_let_be_although_it_was_not_asked_for() {
    let world = World::new();
    let (a, b) = (run_id(1), run_id(2));
    let provider = world.provider().await;
    let everything = spec().placement_group(true);
    for run in [&a, &b] {
        provider.launch(&request(run, 2, everything.clone())).await.unwrap();
    }
    tokio::time::sleep(Duration::from_millis(500)).await;
    let of = |run: &str| world.emulator.remaining().into_iter().filter(|thing| thing.contains(run)).collect();
    let before: Vec<String> = of(b.as_str());
    assert!(before.len() >= 2 + 2 + 4, "{before:?}");
    world.emulator.configure(json!({"ignore_filters": true}));
    // As another process sees it, which has no journal to go by.
    let root = tempfile::tempdir().unwrap();
    let provider = world.elsewhere(root.path()).await;
    assert_eq!(listed(&provider, &a).await.len(), 2);
    provider.extend(&a, SystemTime::now() + Duration::from_secs(9 * 3600)).await.unwrap();
    let survey = provider.survey().await;
    assert_eq!(survey.runs.iter().map(|found| &found.run).collect::<Vec<_>>(), [&a, &b]);
    terminate(&provider, &a).await;
    assert_eq!(of(a.as_str()), Vec::<String>::new());
    assert_eq!(of(b.as_str()), before, "run B was touched");
    terminate(&provider, &b).await;
    world.emulator.assert_empty();
}

#[tokio::test(flavor = "multi_thread")]
async fn text_where_a_value_belongs_passes_nowhere() {
    let world = World::new();
    let (provider, run) = (world.provider().await, run_id(1));
    provider.launch(&request(&run, 1, spec())).await.unwrap();
    world.emulator.configure(json!({
        "forged": {"PublicIpAddress": "10.0.0.1\n  ProxyCommand id", "PrivateIpAddress": "$(id)", "VpcId": "vpc\n1"},
        "forged_tags": {"tsunami:user": "root\n  ProxyCommand id", "tsunami:group": "../../group"},
    }));
    let machines = listed(&provider, &run).await;
    assert_eq!(machines.len(), 1, "it is there all the same");
    let machine = &machines[0];
    assert_eq!((&machine.addresses, &machine.login.user), (&Default::default(), &None));
    assert_eq!(machine.group, "");
    world.emulator.configure(json!({"forged": {"PublicIpAddress": "203.0.113.7"}, "forged_tags": {}}));
    world.emulator.configure(json!({"forged_tags": {"tsunami:user": "ec2-user", "tsunami:group": "node"}}));
    let machine = &listed(&provider, &run).await[0];
    assert_eq!(machine.addresses.public.as_deref(), Some("203.0.113.7"));
    assert_eq!(machine.login.user.as_deref(), Some("ec2-user"));
    terminate(&provider, &run).await;
    world.emulator.assert_empty();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_somebody_else_put_the_tag_on_is_named_in_one_line_and_let_be() {
    let world = World::new();
    let (provider, run) = (world.provider().await, run_id(1));
    provider.launch(&request(&run, 1, spec())).await.unwrap();
    let named = [("Action", "CreateKeyPair"), ("KeyName", "theirs%0Aerror:%20lost")];
    let tag = [
        ("TagSpecification.1.ResourceType", "key-pair"),
        ("TagSpecification.1.Tag.1.Key", "tsunami:run"),
        ("TagSpecification.1.Tag.1.Value", run.as_str()),
    ];
    let answer = world.emulator.ec2(REGION, &[&named[..], &tag].concat());
    assert!(answer.contains("200 OK"), "{answer}");
    let left = loop {
        match provider.terminate(&run).await {
            Ok(left) => assert_ne!(left, []),
            Err(error) => break error.remains,
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    };
    assert_eq!(left.len(), 1, "{left:?}");
    assert_eq!(left[0].what, "key pair \"theirs error: lost\" in eu-west-1");
    assert_eq!(world.emulator.remaining().len(), 1);
    world.emulator.ec2(REGION, &[("Action", "DeleteKeyPair"), named[1]]);
    terminate(&provider, &run).await;
    world.emulator.assert_empty();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_is_looked_for_only_at_the_endpoint_where_it_was_made() {
    let (here, there) = (World::new(), World::new());
    let settings = here.provider().await.settings().clone();
    let recorded = settings.endpoint.clone().unwrap();
    assert!(!recorded.contains("127.0.0.1") && recorded.len() == 16, "{recorded}");
    let again = options().endpoint(recorded).account(settings.account);
    here.provider_with(again.clone()).await.unwrap();
    let error = there.provider_with(again).await.unwrap_err();
    assert!(error.help.unwrap().contains("AWS_ENDPOINT_URL"));
    assert_eq!(there.emulator.calls().len(), 0, "it was asked");
    // One made at AWS itself is not looked for elsewhere.
    let at_aws = options().endpoint("aws");
    assert!(there.provider_with(at_aws).await.unwrap_err().help.unwrap().contains("unset AWS_ENDPOINT_URL"));
    // Records of old say nothing.
    there.provider_with(options()).await.unwrap();
}

fn options() -> Ec2Options {
    Ec2Options::default().regions([REGION])
}

/// A server that answers every request in its own way, and how much it has sent.
fn serve(
    answer: impl Fn(&str, &mut TcpStream, &AtomicUsize) + Send + Sync + 'static,
) -> (String, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let (sent, answer) = (Arc::new(AtomicUsize::new(0)), Arc::new(answer));
    let counted = sent.clone();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let (mut stream, sent, answer) = (stream.unwrap(), counted.clone(), answer.clone());
            std::thread::spawn(move || {
                let mut request = [0; 64 << 10];
                let length = stream.read(&mut request).unwrap_or_default();
                answer(&String::from_utf8_lossy(&request[..length]), &mut stream, &sent);
            });
        }
    });
    (address, sent)
}

fn reply(stream: &mut TcpStream, body: &str) {
    let length = body.len();
    let head =
        format!("HTTP/1.1 200 OK\r\nContent-Type: text/xml\r\nContent-Length: {length}\r\nConnection: close");
    let _ = write!(stream, "{head}\r\n\r\n{body}");
}

const WHO: &str = "<GetCallerIdentityResponse><GetCallerIdentityResult><Arn>arn:aws:iam::1:user/u</Arn>\
                   <Account>1</Account></GetCallerIdentityResult></GetCallerIdentityResponse>";

async fn provider_at(endpoint: &str, patience: Option<Duration>) -> Result<Ec2Provider, ProviderError> {
    let credentials = Credentials::new("test", "test", None, None, "test");
    let mut config = SdkConfig::builder()
        .behavior_version(BehaviorVersion::latest())
        .endpoint_url(endpoint)
        .credentials_provider(SharedCredentialsProvider::new(credentials))
        .region(Region::new(REGION))
        .sleep_impl(
            aws_sdk_ec2::config::SharedAsyncSleep::new(aws_smithy_async::rt::sleep::TokioSleep::new()),
        )
        .retry_config(aws_config::retry::RetryConfig::disabled());
    if let Some(patience) = patience {
        config = config.timeout_config(TimeoutConfig::builder().operation_attempt_timeout(patience).build());
    }
    let root = std::env::temp_dir();
    Ec2Provider::with_config(root, config.build(), options()).await
}

/// Sends without end, until the other side has enough.
fn flood(stream: &mut TcpStream, sent: &AtomicUsize) {
    let chunk = format!("10000\r\n{}\r\n", "x".repeat(1 << 16));
    let _ = write!(stream, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
    while stream.write_all(chunk.as_bytes()).is_ok() {
        sent.fetch_add(chunk.len(), Ordering::Relaxed);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_without_end_is_not_taken_in() {
    let (endpoint, sent) = serve(|_, stream, sent| flood(stream, sent));
    let error = provider_at(&endpoint, None).await.unwrap_err();
    assert!(error.to_string().contains("AnswerTooLong"), "{error}");
    assert!(error.help.unwrap().contains("AWS_ENDPOINT_URL"));
    // What is in the sockets' buffers comes on top.
    let sent = sent.load(Ordering::Relaxed);
    assert!(sent < 2 * SERVICE_ANSWER_LIMIT, "{sent} bytes");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_address_of_this_computer_is_one_address_and_nothing_else() {
    let world = World::new();
    for (answer, said) in [
        (None, "length limit"),
        (Some("203.0.113.7\n198.51.100.1\n"), "something else than an address"),
        (Some("203.0.113.7/0"), "something else than an address"),
        (Some("2001:db8::1"), "machines have IPv4 addresses"),
    ] {
        let (service, sent) = serve(move |_, stream, sent| match answer {
            Some(answer) => reply(stream, answer),
            None => flood(stream, sent),
        });
        let options = options().address_service(service);
        let provider = world.provider_with(options).await.unwrap();
        let open = spec().ssh_from(Vec::<String>::new());
        let error = provider.quote(&MachineSpec::new(open), 1.try_into().unwrap()).await.unwrap_err();
        assert!(error.to_string().contains(said), "{answer:?}: {error}");
        assert!(sent.load(Ordering::Relaxed) < SERVICE_ANSWER_LIMIT);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_comes_a_byte_at_a_time_ends_with_its_time() {
    let (endpoint, _) = serve(|_, stream, _| {
        let _ = write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n");
        while stream.write_all(b" ").is_ok() {
            std::thread::sleep(Duration::from_millis(50));
        }
    });
    let patience = Duration::from_millis(300);
    let error = provider_at(&endpoint, Some(patience)).await.unwrap_err();
    assert!(error.to_string().contains("no answer in time"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn entities_are_not_expanded() {
    let (endpoint, _) = serve(|_, stream, _| {
        let bomb =
            "<?xml version=\"1.0\"?><!DOCTYPE x [<!ENTITY a \"0000000000\"><!ENTITY b \"&a;&a;&a;&a;\">]>";
        reply(stream, &format!("{bomb}{}", WHO.replace("<Account>1", "<Account>&b;")));
    });
    assert!(provider_at(&endpoint, None).await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_listing_without_end_ends() {
    let page = Arc::new(AtomicUsize::new(0));
    let counted = page.clone();
    let (endpoint, _) = serve(move |request, stream, _| {
        if request.contains("GetCallerIdentity") {
            return reply(stream, WHO);
        }
        let next = counted.fetch_add(1, Ordering::Relaxed);
        let body =
            format!("<DescribeInstancesResponse><nextToken>{next}</nextToken></DescribeInstancesResponse>");
        reply(stream, &body);
    });
    let provider = provider_at(&endpoint, None).await.unwrap();
    let error = provider.list(&RunFilter::All).await.unwrap_err();
    assert!(error.to_string().contains("EndlessListing"), "{error}");
    assert_eq!(page.load(Ordering::Relaxed), PAGES_LIMIT);
}
