//! What a file asks for.

use super::*;

fn plan_with(text: &str, arguments: &[(&str, &str)]) -> Result<Plan, BuildError> {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("app"), "app").unwrap();
    let own = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
    let recipe = Recipe::parse(text, arguments.iter().map(own).collect())?;
    let base = ImageConfig {
        env: BTreeMap::from([("BASE".to_owned(), "below".to_owned())]),
        cmd: vec!["of-base".to_owned()],
        ..ImageConfig::default()
    };
    recipe.plan(base, &Context::open(dir.path()).unwrap())
}

fn plan(text: &str) -> Plan {
    plan_with(text, &[]).unwrap()
}

fn run(step: &Step) -> &ExecRequest {
    match &step.action {
        Action::Run(exec) => exec,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_step_has_all_that_the_lines_above_say() {
    let plan = plan(
        "ARG TAG=12\nFROM debian:$TAG\nENV A=one B=$BASE\nARG WHO=you\nWORKDIR /app\nWORKDIR sub\nUSER 7:8\n\
         RUN echo $WHO \\\n  # why\n  && true\nENV WHO=me\nRUN [\"/bin/ls\", \"$A\"]\nCOPY --chown=me app .\n\
         LABEL x=\"y z\"\nEXPOSE 80 90/udp\nENTRYPOINT [\"/app/sub/app\"]\n",
    );
    let [first, second, third] = &plan.steps[..] else {
        panic!("{:?}", plan.steps);
    };
    assert_eq!(
        (first.line, first.directories.as_slice()),
        (8, &["/app".to_owned(), "/app/sub".to_owned()][..])
    );
    assert_eq!(run(first).argv, ["/bin/sh", "-c", "echo $WHO   && true"]);
    assert_eq!(run(first).env["WHO"], "you");
    assert_eq!(
        (run(first).env["A"].as_str(), run(first).env["B"].as_str()),
        ("one", "below")
    );
    assert_eq!(run(first).workdir.as_deref(), Some("/app/sub"));
    assert_eq!(run(first).user.as_deref(), Some("7:8"));
    // No shell reads it.
    assert_eq!(run(second).argv, ["/bin/ls", "$A"]);
    assert_eq!(run(second).env["WHO"], "me");
    let Action::Copy { files, owner } = &third.action else {
        panic!("{third:?}");
    };
    assert_eq!(
        (files.directory.as_str(), owner.as_deref()),
        ("/app/sub", Some("me"))
    );
    let config = plan.config;
    assert_eq!(config.labels["x"], "y z");
    assert!(config.exposed_ports.contains("80/tcp") && config.exposed_ports.contains("90/udp"));
    // An entrypoint of its own takes the template's arguments away.
    assert_eq!(
        (config.entrypoint, config.cmd),
        (vec!["/app/sub/app".to_owned()], Vec::new())
    );
    assert_eq!(config.env["WHO"], "me");
    assert!(config.env["PATH"].contains("/usr/bin"));
}

#[test]
fn arguments_come_from_the_command_line_and_are_not_kept() {
    let text = "ARG TAG=1 MORE=5\nFROM x:$TAG\nARG NAME=a\nARG OTHER MORE\nRUN true\nCMD sleep 1\n";
    let recipe = Recipe::parse(text, BTreeMap::from([("TAG".to_owned(), "2".to_owned())]));
    assert_eq!(recipe.unwrap().from, "x:2");
    let plan = plan_with(text, &[("NAME", "b"), ("OTHER", "c"), ("UNASKED", "d")]).unwrap();
    let env = &run(&plan.steps[0]).env;
    assert_eq!((env["NAME"].as_str(), env["OTHER"].as_str()), ("b", "c"));
    assert_eq!(env["MORE"], "5");
    assert!(!env.contains_key("UNASKED") && !env.contains_key("TAG"));
    assert!(!plan.config.env.contains_key("NAME"));
    assert_eq!(plan.config.cmd, ["/bin/sh", "-c", "sleep 1"]);
}

#[test]
fn a_file_without_steps_has_one_that_does_nothing() {
    let plan = plan("FROM x\nENV A=b\nVOLUME /data\nHEALTHCHECK NONE\n");
    assert!(
        matches!(
            plan.steps[..],
            [Step {
                action: Action::Nothing,
                ..
            }]
        ),
        "{:?}",
        plan.steps
    );
    assert_eq!(plan.notes.len(), 2, "{:?}", plan.notes);
    assert_eq!(plan.config.cmd, ["of-base"]);
}

#[test]
fn a_text_is_a_script() {
    let plan = plan("FROM x\nSHELL [\"/bin/bash\", \"-ec\"]\nRUN <<EOF\necho a\necho b\nEOF\n");
    assert_eq!(
        run(&plan.steps[0]).argv,
        ["/bin/bash", "-ec", "echo a\necho b\n"]
    );
}

#[test]
fn what_is_not_known_is_refused_with_its_line() {
    for (text, line) in [
        ("FROM a\nRUN x\nFROM b\n", Some(3)),
        ("FROM scratch\n", Some(1)),
        ("FROM --platform=x a\n", Some(1)),
        ("FROM a\nADD x /\n", Some(2)),
        ("FROM a\nCOPY --from=b x /\n", Some(2)),
        ("FROM a\nCOPY none /\n", Some(2)),
        ("FROM a\nCOPY --chmod=u+x app /\n", Some(2)),
        ("FROM a\nRUN --mount=type=cache x\n", Some(2)),
        ("FROM a\n\nENV A\n", Some(3)),
        ("FROM a\nENV A=${B:?}\n", Some(2)),
        ("FROM a\nONBUILD RUN x\n", Some(2)),
        ("RUN x\n", None),
        ("FROM a\nNONSENSE\n", None),
        ("", None),
    ] {
        let error = plan_with(text, &[]).unwrap_err();
        let found = match &error {
            BuildError::Line { line, .. } => Some(*line),
            _ => None,
        };
        assert_eq!(found, line, "{text:?}: {error}");
    }
}
