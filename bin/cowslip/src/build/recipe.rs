//! A Dockerfile as what it asks for: the template that it begins with, and steps, each with all that it needs.

use std::collections::BTreeMap;

use cowslip_model::ImageConfig;
use cowslip_model::api::ExecRequest;
use parse_dockerfile::{Command, Dockerfile, Flag, Instruction, RunInstruction, Source};

use super::context::{Context, Copied};
use super::expand::{expand, pairs, words};
use super::{BuildError, path};

/// What a process finds where no image says anything.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// One step: a new sandbox, and what is done in it.
#[derive(Debug)]
pub(crate) struct Step {
    /// Where it stands, counted from 1.
    pub(crate) line: usize,
    /// As it stands there, on one line.
    pub(crate) words: String,
    /// Made first where they are missing.
    pub(crate) directories: Vec<String>,
    pub(crate) action: Action,
}

/// What is done in a step.
#[derive(Debug)]
pub(crate) enum Action {
    /// Only the directories.
    Nothing,
    Run(Box<ExecRequest>),
    Copy {
        files: Copied,
        owner: Option<String>,
    },
}

/// A Dockerfile that has been read.
#[derive(Debug)]
pub(crate) struct Recipe<'a> {
    text: &'a str,
    file: Dockerfile<'a>,
    /// The template that it begins with.
    pub(crate) from: String,
    /// Values for ARG, from the command line.
    arguments: BTreeMap<String, String>,
}

/// What steps there are, and how the template is run in the end.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) steps: Vec<Step>,
    pub(crate) config: ImageConfig,
    /// What was left out, in words.
    pub(crate) notes: Vec<String>,
}

impl<'a> Recipe<'a> {
    /// Reads the file.
    pub(crate) fn parse(
        text: &'a str,
        arguments: BTreeMap<String, String>,
    ) -> Result<Self, BuildError> {
        let file =
            parse_dockerfile::parse(text).map_err(|error| BuildError::Recipe(error.to_string()))?;
        if file
            .parser_directives
            .escape
            .as_ref()
            .is_some_and(|escape| escape.value.value != '\\')
        {
            let why = "the escape directive: only the backslash is known here";
            return Err(BuildError::Recipe(why.to_owned()));
        }
        let mut recipe = Self {
            text,
            file,
            from: String::new(),
            arguments,
        };
        recipe.from = recipe.find_from()?;
        Ok(recipe)
    }

    fn find_from(&self) -> Result<String, BuildError> {
        let mut values = BTreeMap::new();
        let mut from = None;
        for instruction in &self.file.instructions {
            let line = self.line(instruction);
            match instruction {
                Instruction::Arg(arg) if from.is_none() => {
                    self.argument(&arg.arguments.value, &mut values, &BTreeMap::new())
                        .map_err(at(line))?;
                }
                Instruction::From(found) => {
                    if from.is_some() {
                        let why =
                            "there is a second FROM: build each stage as a template of its own";
                        return Err(at(line)(why.to_owned()));
                    }
                    refuse_flags(&found.options, &[]).map_err(at(line))?;
                    let image = expand(&found.image.value, &values).map_err(at(line))?;
                    if image == "scratch" {
                        let why = "FROM scratch: there is nothing to run a step in; import an image instead";
                        return Err(at(line)(why.to_owned()));
                    }
                    from = Some(image);
                }
                _ => {}
            }
        }
        from.ok_or_else(|| BuildError::Recipe("there is no FROM".to_owned()))
    }

    /// Declares an ARG: its value is the command line's, or the default.
    ///
    /// `above` are the values of those that stand before FROM: they count where no other is given.
    fn argument(
        &self,
        text: &str,
        values: &mut BTreeMap<String, String>,
        above: &BTreeMap<String, String>,
    ) -> Result<(), String> {
        for word in words(text)? {
            let (name, default) = match word.split_once('=') {
                Some((name, default)) => (name, Some(expand(default, values)?)),
                None => (word.as_str(), None),
            };
            let default = default.or_else(|| above.get(name).cloned());
            if let Some(value) = self.arguments.get(name).cloned().or(default) {
                values.insert(name.to_owned(), value);
            }
        }
        Ok(())
    }

    fn line(&self, instruction: &Instruction<'_>) -> usize {
        let start = span(instruction);
        self.text
            .get(..start)
            .map_or(1, |before| before.matches('\n').count() + 1)
    }

    /// The steps, on a template that is run like this.
    pub(crate) fn plan(&self, base: ImageConfig, context: &Context) -> Result<Plan, BuildError> {
        let mut planner = Planner {
            config: base,
            values: BTreeMap::new(),
            shell: vec!["/bin/sh".to_owned(), "-c".to_owned()],
            context,
            directories: Vec::new(),
            steps: Vec::new(),
            notes: Vec::new(),
            cmd_is_own: false,
        };
        planner
            .config
            .env
            .entry("PATH".to_owned())
            .or_insert_with(|| PATH.to_owned());
        let mut begun = false;
        let mut above = BTreeMap::new();
        for instruction in &self.file.instructions {
            let line = self.line(instruction);
            let words = one_line(self.text.get(span(instruction)..).unwrap_or_default());
            match instruction {
                Instruction::From(_) => begun = true,
                // Those before FROM are FROM's, and count behind it only where they are named again.
                Instruction::Arg(arg) if !begun => {
                    let none = BTreeMap::new();
                    self.argument(&arg.arguments.value, &mut above, &none)
                        .map_err(at(line))?;
                }
                Instruction::Arg(arg) => {
                    let mut values = planner.all_values();
                    self.argument(&arg.arguments.value, &mut values, &above)
                        .map_err(at(line))?;
                    values.retain(|name, _| !planner.config.env.contains_key(name));
                    planner.values = values;
                }
                other => planner.take(other, line, words)?,
            }
        }
        let Planner {
            mut steps,
            config,
            notes,
            directories,
            ..
        } = planner;
        if steps.is_empty() || !directories.is_empty() {
            steps.push(Step {
                line: 1,
                words: "the rest".to_owned(),
                directories,
                action: Action::Nothing,
            });
        }
        Ok(Plan {
            steps,
            config,
            notes,
        })
    }
}

struct Planner<'a> {
    config: ImageConfig,
    /// Of ARG.
    values: BTreeMap<String, String>,
    shell: Vec<String>,
    context: &'a Context,
    /// To be made with the next step.
    directories: Vec<String>,
    steps: Vec<Step>,
    notes: Vec<String>,
    /// CMD is this file's, and not of the template below.
    cmd_is_own: bool,
}

impl Planner<'_> {
    /// Variables of the words: ENV's count more than ARG's.
    fn all_values(&self) -> BTreeMap<String, String> {
        let mut values = self.values.clone();
        values.extend(self.config.env.clone());
        values
    }

    fn workdir(&self) -> String {
        self.config
            .workdir
            .clone()
            .unwrap_or_else(|| "/".to_owned())
    }

    fn push(&mut self, line: usize, words: String, action: Action) {
        self.steps.push(Step {
            line,
            words,
            directories: std::mem::take(&mut self.directories),
            action,
        });
    }

    fn take(
        &mut self,
        instruction: &Instruction<'_>,
        line: usize,
        words: String,
    ) -> Result<(), BuildError> {
        let values = self.all_values();
        let expand = |text: &str| expand(text, &values).map_err(at(line));
        match instruction {
            Instruction::Env(env) => {
                for (name, value) in pairs(&env.arguments.value).map_err(at(line))? {
                    self.config.env.insert(expand(&name)?, expand(&value)?);
                }
            }
            Instruction::Label(label) => {
                for (name, value) in pairs(&label.arguments.value).map_err(at(line))? {
                    self.config.labels.insert(expand(&name)?, expand(&value)?);
                }
            }
            Instruction::Workdir(workdir) => {
                let joined = path::join(&self.workdir(), &expand(&workdir.arguments.value)?);
                self.directories.push(joined.clone());
                self.config.workdir = Some(joined);
            }
            Instruction::User(user) => {
                let name = expand(&user.arguments.value)?;
                if name.is_empty() {
                    return Err(at(line)("USER without a name".to_owned()));
                }
                self.config.user = Some(name);
            }
            Instruction::Stopsignal(signal) => {
                self.config.stop_signal = Some(expand(&signal.arguments.value)?);
            }
            Instruction::Expose(expose) => {
                for port in &expose.arguments {
                    let port = expand(&port.value)?;
                    let port = match port.contains('/') {
                        true => port,
                        false => format!("{port}/tcp"),
                    };
                    self.config.exposed_ports.insert(port);
                }
            }
            Instruction::Shell(shell) => {
                self.shell = shell
                    .arguments
                    .iter()
                    .map(|word| word.value.to_string())
                    .collect();
            }
            Instruction::Entrypoint(entrypoint) => {
                self.config.entrypoint = self.command(&entrypoint.arguments);
                // The one below belongs to another program.
                if !self.cmd_is_own {
                    self.config.cmd.clear();
                }
            }
            Instruction::Cmd(cmd) => {
                self.config.cmd = self.command(&cmd.arguments);
                self.cmd_is_own = true;
            }
            Instruction::Run(run) => {
                let argv = self.script(run).map_err(at(line))?;
                let mut env = self.values.clone();
                env.extend(self.config.env.clone());
                let exec = ExecRequest {
                    argv,
                    env,
                    workdir: Some(self.workdir()),
                    user: self.config.user.clone(),
                    ..ExecRequest::default()
                };
                self.push(line, words, Action::Run(Box::new(exec)));
            }
            Instruction::Copy(copy) => {
                refuse_flags(&copy.options, &["chown", "chmod"]).map_err(at(line))?;
                let sources = copy.src.iter().map(|source| match source {
                    Source::Path(path) => expand(&path.value),
                    _ => Err(at(line)("COPY of text: write a file".to_owned())),
                });
                let sources: Vec<String> = sources.collect::<Result<_, _>>()?;
                let destination = expand(&copy.dest.value)?;
                let flag = |name| flag(&copy.options, name).map(expand).transpose();
                let mode = flag("chmod")?.map(|mode| octal(&mode)).transpose();
                let places = (self.workdir(), destination);
                let files =
                    self.context
                        .select(&sources, (&places.0, &places.1), mode.map_err(at(line))?);
                let files = files.map_err(|error| at(line)(error.to_string()))?;
                let owner = flag("chown")?;
                self.push(line, words, Action::Copy { files, owner });
            }
            Instruction::Volume(_) | Instruction::Healthcheck(_) | Instruction::Maintainer(_) => {
                self.notes
                    .push(format!("line {line} means nothing here: {words}"));
            }
            Instruction::Add(_) => {
                let why = "ADD is not known here: use COPY, and RUN to unpack or download";
                return Err(at(line)(why.to_owned()));
            }
            _ => return Err(at(line)(format!("it is not known here: {words}"))),
        }
        Ok(())
    }

    /// The words of a command: its own, or the shell's and it.
    fn command(&self, command: &Command<'_>) -> Vec<String> {
        match command {
            Command::Exec(words) => words
                .value
                .iter()
                .map(|word| word.value.to_string())
                .collect(),
            Command::Shell(text) => self.in_shell(&joined(text.value)),
            _ => Vec::new(),
        }
    }

    fn in_shell(&self, script: &str) -> Vec<String> {
        self.shell
            .iter()
            .cloned()
            .chain([script.to_owned()])
            .collect()
    }

    fn script(&self, run: &RunInstruction<'_>) -> Result<Vec<String>, String> {
        refuse_flags(&run.options, &[])?;
        match (run.here_docs.as_slice(), &run.arguments) {
            ([], arguments) => Ok(self.command(arguments)),
            ([script], Command::Shell(text)) if text.value.trim().is_empty() => {
                match script.value.starts_with("#!") {
                    true => Err("RUN of a text with a program of its own (#!): COPY it".to_owned()),
                    false => Ok(self.in_shell(&script.value)),
                }
            }
            _ => Err(
                "RUN with a command and a text: write the text into a file and COPY it".to_owned(),
            ),
        }
    }
}

fn at(line: usize) -> impl Fn(String) -> BuildError {
    move |why| BuildError::Line { line, why }
}

fn refuse_flags(flags: &[Flag<'_>], known: &[&str]) -> Result<(), String> {
    match flags
        .iter()
        .find(|flag| !known.contains(&flag.name.value.as_ref()))
    {
        Some(flag) => Err(format!("--{} is not known here", flag.name.value)),
        None => Ok(()),
    }
}

fn flag<'f>(flags: &'f [Flag<'_>], name: &str) -> Option<&'f str> {
    let found = flags.iter().find(|flag| flag.name.value == name)?;
    found.value.as_ref().map(|value| value.value.as_ref())
}

fn octal(text: &str) -> Result<u32, String> {
    match u32::from_str_radix(text, 8) {
        Ok(mode) if mode <= 0o7777 => Ok(mode),
        _ => Err(format!(
            "--chmod={text}: give it as an octal number, as 0755"
        )),
    }
}

/// A command that goes over several lines, on one: without the backslashes, and without the comments between.
fn joined(text: &str) -> String {
    let mut out = String::new();
    for line in text.lines() {
        if line.trim_start().starts_with('#') && !out.is_empty() {
            continue;
        }
        match line.trim_end().strip_suffix('\\') {
            Some(part) => out.push_str(part),
            None => out.push_str(line),
        }
    }
    out
}

/// The first line of an instruction, with what follows its backslashes.
fn one_line(text: &str) -> String {
    let mut lines = text.lines();
    let mut out = String::new();
    for line in lines.by_ref() {
        let line = line.trim();
        match line.strip_suffix('\\') {
            Some(part) => {
                out.push_str(part);
            }
            None => {
                out.push_str(line);
                break;
            }
        }
    }
    out.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Where an instruction begins, in bytes.
fn span(instruction: &Instruction<'_>) -> usize {
    let keyword = match instruction {
        Instruction::Add(one) => &one.add,
        Instruction::Arg(one) => &one.arg,
        Instruction::Cmd(one) => &one.cmd,
        Instruction::Copy(one) => &one.copy,
        Instruction::Entrypoint(one) => &one.entrypoint,
        Instruction::Env(one) => &one.env,
        Instruction::Expose(one) => &one.expose,
        Instruction::From(one) => &one.from,
        Instruction::Healthcheck(one) => &one.healthcheck,
        Instruction::Label(one) => &one.label,
        Instruction::Maintainer(one) => &one.maintainer,
        Instruction::Onbuild(one) => &one.onbuild,
        Instruction::Run(one) => &one.run,
        Instruction::Shell(one) => &one.shell,
        Instruction::Stopsignal(one) => &one.stopsignal,
        Instruction::User(one) => &one.user,
        Instruction::Volume(one) => &one.volume,
        Instruction::Workdir(one) => &one.workdir,
        _ => return 0,
    };
    keyword.span.start
}

#[cfg(test)]
mod tests;
