//! One verb on several objects: each is tried, each is reported, in the order they were given.

use std::future::Future;

use cowslip_model::api::ErrorCode;
use futures_util::{StreamExt, stream};
use serde::Serialize;

use super::Context;
use crate::exit::{Failure, PARTLY_FAILED};
use crate::output;

/// How many are in work at once.
const AT_ONCE: usize = 8;

/// What became of each object.
#[derive(Debug)]
pub(super) struct Results<T> {
    /// What succeeded.
    pub(super) done: Vec<T>,
    exit: u8,
}

/// Tries `verb` on each of `names`. A success is passed to `report` as soon as all before it are
/// through; a failure is shown. With one name its failure is the command's.
pub(super) async fn each<T, F>(
    names: &[String],
    verb: impl Fn(String) -> F,
    report: impl Fn(&str, &T) -> Result<(), Failure>,
) -> Result<Results<T>, Failure>
where
    F: Future<Output = Result<T, Failure>>,
{
    let tries = stream::iter(names.iter().map(|name| {
        let attempt = if name.is_empty() {
            None
        } else {
            Some(verb(name.clone()))
        };
        async move {
            match attempt {
                Some(attempt) => (name, attempt.await),
                None => (
                    name,
                    Err(Failure::new(ErrorCode::Invalid, "a name or id is empty")),
                ),
            }
        }
    }));
    let mut tries = std::pin::pin!(tries.buffered(AT_ONCE));
    let mut results = Results {
        done: Vec::new(),
        exit: 0,
    };
    while let Some((name, result)) = tries.next().await {
        match result {
            Ok(item) => {
                report(name, &item)?;
                results.done.push(item);
            }
            Err(failure) => {
                output::failure(&failure);
                results.exit = if names.len() == 1 {
                    failure.exit
                } else {
                    PARTLY_FAILED
                };
            }
        }
    }
    Ok(results)
}

impl<T> Results<T> {
    /// The command's exit code.
    pub(super) fn exit(&self) -> u8 {
        self.exit
    }
}

/// Tries `verb` on each of `names` and prints each name that it succeeded on, or with `--json` all
/// results at the end.
pub(super) async fn named<T, F>(
    context: &Context,
    names: &[String],
    verb: impl Fn(String) -> F,
) -> Result<u8, Failure>
where
    T: Serialize,
    F: Future<Output = Result<T, Failure>>,
{
    let json = context.output.json;
    let report = |name: &str, _: &T| if json { Ok(()) } else { output::line(name) };
    let results = each(names, verb, report).await?;
    if json {
        output::json(&results.done)?;
    }
    Ok(results.exit())
}
