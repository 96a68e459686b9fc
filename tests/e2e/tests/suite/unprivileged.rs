//! Without root: a state directory by the XDG rules, and the same commands.

use cowslip_e2e::{Instance, Kernel, Setup};
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
