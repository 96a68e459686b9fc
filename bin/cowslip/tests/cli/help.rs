use crate::fake::cowslip;

#[test]
fn help_of_every_command() {
    let verbs: &[&[&str]] = &[
        &[],
        &["run"],
        &["create"],
        &["start"],
        &["stop"],
        &["rm"],
        &["ls"],
        &["inspect"],
        &["logs"],
        &["exec"],
        &["shell"],
        &["forward"],
        &["cp"],
        &["checkpoint"],
        &["checkpoint", "create"],
        &["checkpoint", "ls"],
        &["checkpoint", "rm"],
        &["fork"],
        &["restore"],
        &["pause"],
        &["resume"],
        &["template"],
        &["template", "import"],
        &["kernel"],
        &["kernel", "import"],
        &["events"],
        &["doctor"],
        &["host"],
        &["host", "prepare"],
        &["host", "undo"],
        &["info"],
        &["gc"],
        &["serve"],
        &["version"],
        &["completion"],
    ];
    let dir = tempfile::tempdir().unwrap();
    let mut all = String::new();
    for verb in verbs {
        let output = cowslip(dir.path())
            .args(*verb)
            .arg("--help")
            .output()
            .unwrap();
        assert!(output.status.success(), "{verb:?}");
        let text = String::from_utf8(output.stdout).unwrap();
        // What stands on every page is shown with the first one only.
        let own = if verb.is_empty() {
            &text
        } else {
            text.split("\nGlobal options:").next().unwrap()
        };
        all.push_str(&format!(
            "$ cowslip {} --help\n{}\n",
            verb.join(" "),
            own.trim_end()
        ));
        all.push('\n');
    }
    assert_eq!(
        std::fs::read_dir(dir.path()).unwrap().count(),
        0,
        "help made files"
    );
    insta::assert_snapshot!(all);
}

#[test]
fn completions_are_for_the_usual_shells() {
    let dir = tempfile::tempdir().unwrap();
    for shell in ["bash", "zsh", "fish"] {
        let output = cowslip(dir.path())
            .args(["completion", shell])
            .output()
            .unwrap();
        let script = String::from_utf8(output.stdout).unwrap();
        assert!(
            output.status.success() && script.contains("checkpoint"),
            "{shell}"
        );
    }
}
