//! Without root: a state directory by the XDG rules, and the same commands.

use cowslip_e2e::{End, HOST, Instance, Kernel, Lab, SITE, Setup};
use cowslip_model::api::Sandbox;

/// A user who owns nothing else; only root can become it.
const NOBODY: u32 = 65534;

#[test]
fn the_main_job_without_root() {
    let user = if rustix::process::geteuid().is_root() {
        NOBODY
    } else {
        rustix::process::geteuid().as_raw()
    };
    let setup = Setup {
        user: Some(user),
        ..Setup::default()
    };
    let host = Instance::ready(setup, Kernel::Guest);
    let before = host.files();
    let info = host.info();
    assert_eq!(info.state_dir, host.state().display().to_string());
    assert_eq!(info.run_dir, host.run_dir().display().to_string());
    let _ = host
        .say("run --rm box -- sh -c")
        .arg("exit 7")
        .run()
        .exits(7);
    let _ = host.say("run -d --name source box").ok();
    let _ = host.sh("source", "echo before >/root/f").ok();
    let _ = host.say("checkpoint create source --name point").ok();
    let forks: Vec<Sandbox> = host.say("fork point --count 2 --name fork").json();
    for fork in &forks {
        let name = fork.name.as_str();
        assert_eq!(
            host.sh(name, "cat /root/f; echo own >/root/f").ok(),
            "before"
        );
    }
    let _ = host.say("pause source").ok();
    let _ = host.say("resume source").ok();
    assert_eq!(host.sh("source", "cat /root/f").ok(), "before");
    let _ = host.say("rm --force source fork-1 fork-2").ok();
    let _ = host.say("checkpoint rm point").ok();
    host.assert_only(&before);
}

#[test]
fn a_network_without_root_is_the_users_own_and_only_when_asked_for() {
    let Some(lab) = Lab::new() else { return };
    lab.serve(End::Site, &[80]);
    let setup = Setup {
        user: Some(NOBODY),
        netns: Some(lab.path(End::Host)),
        ..Setup::default()
    };
    let host = Instance::ready(setup, Kernel::Guest);
    let get = format!("timeout 5 wget -q -O - http://{SITE}/ 2>/dev/null; true");
    let _ = host.say("run -d --name none box -- sleep 1000").ok();
    assert_eq!(host.sh("none", &get).ok(), "");
    host.say("create --network nat box")
        .run()
        .refused(&["root", "--network user"]);
    host.say("create --network user --deny 10.0.0.0/8 box")
        .run()
        .refused(&["--deny", "--network nat"]);
    let serve = "echo page >/tmp/index.html; httpd -f -p 80 -h /tmp";
    let _ = host
        .say("run -d --name user --network user --publish 8080:80 box -- sh -c")
        .arg(serve)
        .ok();
    assert_eq!(host.sh("user", &get).ok(), format!("you are {HOST}"));
    let up = "until wget -q -O /dev/null http://127.0.0.1/; do sleep 0.1; done";
    let _ = host.sh("user", up).ok();
    let leads = || {
        lab.ask(End::Site, HOST, 8080)
            .is_some_and(|text| text.contains("page"))
    };
    assert!(leads());
    let _ = host.say("pause user").ok();
    let _ = host.say("resume user").ok();
    assert!(leads());
    assert_eq!(host.sh("user", &get).ok(), format!("you are {HOST}"));
    let doctor = host.say("doctor").run().text();
    assert!(doctor.contains("root"), "{doctor}");
}
