//! `kernel import|ls|inspect|rm`.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use cowslip_model::api::{Kernel as Object, KernelImportRequest};
use cowslip_model::{Name, Timestamp};

use super::{Context, inspect, many, on_this_host, values};
use crate::client::Path;
use crate::exit::Failure;
use crate::output::views;

const COLLECTION: &str = "kernels";

/// Import and keep guest kernels.
#[derive(Debug, Subcommand)]
pub(crate) enum Kernel {
    /// Import a kernel and make its initramfs
    Import(Import),
    /// List kernels
    Ls,
    /// Show all there is to know about kernels, as JSON
    Inspect(Names),
    /// Remove kernels
    Rm(Names),
}

/// Import a kernel.
#[derive(Debug, Args)]
pub(crate) struct Import {
    /// Its name
    #[arg(value_name = "NAME", value_parser = values::name)]
    name: Name,
    /// The kernel image: a bzImage or an ELF vmlinux
    #[arg(value_name = "VMLINUZ")]
    image: PathBuf,
    /// The directory of its modules, as lib/modules/6.1.0-42-cloud-amd64
    #[arg(long, value_name = "DIR")]
    modules: Option<PathBuf>,
}

/// The kernels of a verb.
#[derive(Debug, Args)]
pub(crate) struct Names {
    /// Names or ids
    #[arg(value_name = "KERNEL", required = true)]
    names: Vec<String>,
}

impl Kernel {
    pub(crate) async fn run(self, context: &Context) -> Result<u8, Failure> {
        match self {
            Self::Import(import) => import.run(context).await,
            Self::Ls => ls(context).await,
            Self::Inspect(verb) => {
                inspect::inspect::<Object>(context, COLLECTION, &verb.names).await
            }
            Self::Rm(verb) => {
                many::named(context, &verb.names, |name| async move {
                    let path = Path::to(COLLECTION).segment(&name);
                    context.client.delete(path).await.map(|()| name)
                })
                .await
            }
        }
    }
}

impl Import {
    async fn run(self, context: &Context) -> Result<u8, Failure> {
        let image = on_this_host(&self.image)?;
        let modules = self.modules.as_deref().map(on_this_host).transpose()?;
        let request = KernelImportRequest {
            name: self.name,
            image,
            modules,
        };
        let kernel: Object = context.client.post(Path::to(COLLECTION), &request).await?;
        context.output.note(&format!(
            "kernel \"{}\": {} ({}), {} modules in its initramfs, {}",
            kernel.name, kernel.release, kernel.format, kernel.modules, kernel.size
        ));
        context
            .output
            .show(&kernel, |kernel| format!("{}\n", kernel.id))?;
        Ok(0)
    }
}

async fn ls(context: &Context) -> Result<u8, Failure> {
    let mut kernels: Vec<Object> = context.client.get(Path::to(COLLECTION)).await?;
    kernels.sort_by(|a, b| a.name.cmp(&b.name));
    context.output.list(
        &kernels,
        |kernel| kernel.id.to_string(),
        |kernels| views::kernels(kernels, Timestamp::now()),
    )?;
    Ok(0)
}
