//! `ls`: sandboxes in a table.

use clap::Args;
use cowslip_model::Timestamp;
use cowslip_model::api::Sandbox;

use super::Context;
use crate::client::Path;
use crate::exit::Failure;
use crate::output::views;

/// List sandboxes.
#[derive(Debug, Args)]
pub(crate) struct Ls {
    /// Show only sandboxes with KEY=VALUE; keys: name (a part of it), id (its start), state, template
    /// (name, or start of the id), kernel
    #[arg(short, long, value_name = "KEY=VALUE", value_parser = filter)]
    filter: Vec<Filter>,
    /// Show only the newest one
    #[arg(short, long)]
    latest: bool,
    /// Show only the newest N
    #[arg(short = 'n', long, value_name = "N", conflicts_with = "latest")]
    last: Option<usize>,
    /// Accepted for docker's sake: all sandboxes are always shown
    #[arg(short, long)]
    all: bool,
    /// Show whole ids
    #[arg(long)]
    no_trunc: bool,
}

/// A condition on what is shown.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Filter {
    Name(String),
    Id(String),
    State(String),
    Template(String),
    Kernel(String),
}

fn filter(text: &str) -> Result<Filter, String> {
    let (key, value) = text
        .split_once('=')
        .ok_or("write KEY=VALUE, as state=running")?;
    let value = value.to_owned();
    match key {
        "name" => Ok(Filter::Name(value)),
        "id" => Ok(Filter::Id(value)),
        "state" | "status" => Ok(Filter::State(value)),
        "template" | "ancestor" => Ok(Filter::Template(value)),
        "kernel" => Ok(Filter::Kernel(value)),
        _ => Err(format!(
            "there is no key \"{key}\": use name, id, state, template or kernel"
        )),
    }
}

impl Filter {
    fn passes(&self, sandbox: &Sandbox) -> bool {
        match self {
            Self::Name(part) => sandbox.name.as_str().contains(part.as_str()),
            Self::Id(start) => sandbox.id.to_string().starts_with(start.as_str()),
            Self::State(state) => sandbox.state.as_str() == state,
            Self::Template(template) => {
                sandbox
                    .template_name
                    .as_ref()
                    .is_some_and(|name| name.as_str() == template)
                    || sandbox.template.to_string().starts_with(template.as_str())
            }
            Self::Kernel(kernel) => sandbox.kernel == *kernel,
        }
    }

    /// Filters of one kind widen each other, those of different kinds narrow, as docker has it.
    fn all_pass(filters: &[Self], sandbox: &Sandbox) -> bool {
        filters.iter().all(|filter| {
            let same =
                |other: &&Self| std::mem::discriminant(*other) == std::mem::discriminant(filter);
            filters
                .iter()
                .filter(same)
                .any(|filter| filter.passes(sandbox))
        })
    }
}

impl Ls {
    pub(crate) async fn run(self, context: &Context) -> Result<u8, Failure> {
        let mut sandboxes: Vec<Sandbox> = context.client.get(Path::to("sandboxes")).await?;
        sandboxes.retain(|sandbox| Filter::all_pass(&self.filter, sandbox));
        sandboxes.sort_by(|a, b| b.created_at.cmp(&a.created_at).then(a.name.cmp(&b.name)));
        if let Some(count) = self.last.or(self.latest.then_some(1)) {
            sandboxes.truncate(count);
        }
        let whole = self.no_trunc;
        context.output.list(
            &sandboxes,
            |sandbox| sandbox.id.to_string(),
            |sandboxes| views::sandboxes(sandboxes, Timestamp::now(), whole),
        )?;
        Ok(0)
    }
}
