//! An engine that is to meet one of its steps: this program, started again by the test.

use std::fs::File;
use std::io::Write;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use cowslip_engine::{Config, Engine, EngineError, Parts};
use cowslip_ledger::fault::Injector;
use cowslip_ledger::{Faults, Step, Verdict};
use cowslip_model::api::{CreateRequest, StopRequest};
use cowslip_model::{SandboxState, Timestamp};
use rustix::process::{Signal, getpid, kill_process};
use serde_json::json;

use super::parts;

/// What it is told: the verb, which of its steps, what happens there; where it writes down the steps; its directories.
pub(super) const VERB: &str = "COWSLIP_DOOMED_VERB";
pub(super) const AT: &str = "COWSLIP_DOOMED_AT";
pub(super) const WRONG: &str = "COWSLIP_DOOMED_WRONG";
pub(super) const STEPS: &str = "COWSLIP_DOOMED_STEPS";
pub(super) const STATE: &str = "COWSLIP_DOOMED_STATE";
pub(super) const RUN: &str = "COWSLIP_DOOMED_RUN";

/// Its exit code where the verb failed, and came about when it was tried again.
pub(super) const FAILED: i32 = 10;

/// Lets one step fail, or kills this process around it.
struct Doom {
    armed: AtomicBool,
    at: usize,
    wrong: String,
    taken: AtomicUsize,
    steps: Mutex<File>,
    last: AtomicBool,
}

impl Doom {
    fn die() -> ! {
        let _ = kill_process(getpid(), Signal::KILL);
        loop {
            std::thread::park();
        }
    }
}

impl Faults for Doom {
    fn verdict(&self, step: Step<'_>) -> Verdict {
        if !self.armed.load(Ordering::SeqCst) {
            return Verdict::Proceed;
        }
        let index = self.taken.fetch_add(1, Ordering::SeqCst);
        writeln!(self.steps.lock().unwrap(), "{step}").unwrap();
        if index != self.at {
            return Verdict::Proceed;
        }
        match self.wrong.as_str() {
            "fail" => Verdict::Fail,
            "die-before" => Self::die(),
            _ => {
                self.last.store(true, Ordering::SeqCst);
                Verdict::Proceed
            }
        }
    }

    fn done(&self, _step: Step<'_>) {
        if self.last.load(Ordering::SeqCst) {
            Self::die();
        }
    }
}

fn variable(name: &str) -> String {
    std::env::var(name).unwrap()
}

#[test]
fn an_engine() {
    if std::env::var_os(VERB).is_none() {
        return;
    }
    let code = tokio::runtime::Runtime::new().unwrap().block_on(life());
    // Not as a test that ends: the engine goes, and its machines stay.
    std::process::exit(code);
}

async fn life() -> i32 {
    let text = std::fs::read_to_string(variable("COWSLIP_CONFIG")).unwrap();
    let mut config: Config = toml::from_str(&text).unwrap();
    config.paths.state = PathBuf::from(variable(STATE));
    config.paths.run = PathBuf::from(variable(RUN));
    config.paths.cache.clone_from(&config.paths.state);
    let doom = Arc::new(Doom {
        armed: AtomicBool::new(false),
        at: variable(AT).parse().unwrap(),
        wrong: variable(WRONG),
        taken: AtomicUsize::new(0),
        steps: Mutex::new(File::create(variable(STEPS)).unwrap()),
        last: AtomicBool::new(false),
    });
    let injector = Injector::new(Arc::clone(&doom) as Arc<dyn Faults>);
    let real = Parts::of_this_host(config, injector.clone()).unwrap();
    let (engine, recovered) = Engine::assemble(parts::with_steps(real, &injector)).await;
    assert!(recovered.left.is_empty(), "{recovered:?}");
    let verb = variable(VERB);
    prepare(&engine, &verb).await.unwrap();
    doom.armed.store(true, Ordering::SeqCst);
    let outcome = act(&engine, &verb).await;
    doom.armed.store(false, Ordering::SeqCst);
    let Err(error) = outcome else { return 0 };
    eprintln!("{verb} failed, as it should: {error}");
    // The same engine, once more: first what the verb needs. It may have come about all but for its last words,
    // and is refused in the state that it led to.
    for _ in 0..2 {
        let again = async {
            ready_again(&engine, &verb).await?;
            act(&engine, &verb).await
        };
        match again.await {
            Ok(()) => return FAILED,
            Err(error) => eprintln!("{verb} failed once more: {error}"),
        }
    }
    1
}

async fn fork_one(engine: &Arc<Engine>, more: serde_json::Value) -> Result<(), EngineError> {
    let mut request = json!({ "name": "one" });
    request
        .as_object_mut()
        .unwrap()
        .extend(more.as_object().unwrap().clone());
    let request = serde_json::from_value(request).unwrap();
    engine.fork("base", request).await.map(drop)
}

async fn prepare(engine: &Arc<Engine>, verb: &str) -> Result<(), EngineError> {
    match verb {
        "create" => Ok(()),
        "start" => {
            fork_one(engine, json!({})).await?;
            engine.stop("one", StopRequest::default()).await.map(drop)
        }
        "resume" => {
            fork_one(engine, json!({})).await?;
            engine.pause("one").await.map(drop)
        }
        _ => match verb.strip_prefix("expire-") {
            Some(how) => fork_one(engine, json!({ "ttl": 3600, "on_expiry": how })).await,
            None => fork_one(engine, json!({})).await,
        },
    }
}

/// Brings the sandbox to where the verb finds it, as a user would after it failed.
async fn ready_again(engine: &Arc<Engine>, verb: &str) -> Result<(), EngineError> {
    let Ok(one) = engine.sandbox("one") else {
        return Ok(());
    };
    match (verb, one.state) {
        ("start", _) | (_, SandboxState::Running) | ("resume", _) => Ok(()),
        (_, SandboxState::Paused) => engine.resume("one").await.map(drop),
        _ => engine.start("one").await.map(drop),
    }
}

async fn act(engine: &Arc<Engine>, verb: &str) -> Result<(), EngineError> {
    let request = |value| serde_json::from_value(value).unwrap();
    match verb {
        "create" => {
            let request = json!({ "template": "box", "name": "one", "memory": 128 << 20 });
            let request: CreateRequest = serde_json::from_value(request).unwrap();
            engine.create(request).await.map(drop)
        }
        "start" => engine.start("one").await.map(drop),
        "checkpoint" => {
            let request = json!({ "sandbox": "one", "name": "point" });
            let request = serde_json::from_value(request).unwrap();
            engine.create_checkpoint(request).await.map(drop)
        }
        "fork" => {
            let request = request(json!({ "name": "two", "count": 2 }));
            engine.fork("base", request).await.map(drop)
        }
        "pause" => engine.pause("one").await.map(drop),
        "resume" => engine.resume("one").await.map(drop),
        "stop" => engine.stop("one", StopRequest::default()).await.map(drop),
        "rm" => match engine.sandbox("one") {
            Ok(_) => engine.remove("one", true).await,
            Err(_) => Ok(()),
        },
        _ => {
            let Ok(one) = engine.sandbox("one") else {
                return Ok(());
            };
            let later = Timestamp::now().after(Duration::from_secs(7200));
            engine.expire(one.id, later).await
        }
    }
}
