//! What is made of the command line is what is committed, and the shells take it.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use netvsc_cli::manual::{Shell, pages};

fn assets() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("assets")
}

/// Compares a folder of the repository with what should be in it, or with NETVSC_UPDATE set writes that.
fn compare(folder: &str, made: &BTreeMap<String, Vec<u8>>) {
    let folder = assets().join(folder);
    if std::env::var_os("NETVSC_UPDATE").is_some() {
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir_all(&folder).expect("a folder");
        for (name, text) in made {
            fs::write(folder.join(name), text).expect("a file");
        }
    }
    let entries = fs::read_dir(&folder).expect("the folder is committed");
    let committed: BTreeMap<String, Vec<u8>> = entries
        .map(|entry| {
            let path = entry.expect("an entry").path();
            let name = path.file_name().expect("a name").to_string_lossy().into_owned();
            (name, fs::read(&path).expect("a file"))
        })
        .collect();
    let names = |files: &BTreeMap<String, Vec<u8>>| files.keys().cloned().collect::<Vec<_>>();
    let how = "NETVSC_UPDATE=1 cargo test -p netvsc-cli --test generated";
    assert_eq!(names(&committed), names(made), "in {}; run: {how}", folder.display());
    for (name, text) in made {
        assert!(committed[name] == *text, "{name} differs from the command line; run: {how}");
    }
}

#[test]
fn man_pages_are_those_of_the_command_line() {
    let made: BTreeMap<_, _> = pages().expect("pages").into_iter().collect();
    assert!(made.contains_key("netvsc.1") && made.contains_key("netvsc-list.1"));
    compare("man", &made);
}

#[test]
fn completions_are_those_of_the_command_line() {
    let made = Shell::ALL.map(|shell| (shell.file().to_owned(), shell.completions()));
    compare("completions", &made.into_iter().collect());
}

/// Runs a script in a shell and gives what it prints; none if there is no such shell.
fn run(shell: &str, arguments: &[&str]) -> Option<String> {
    let output = match Command::new(shell).args(arguments).env("TERM", "dumb").output() {
        Ok(output) => output,
        Err(error) => {
            assert!(std::env::var_os("NETVSC_NO_SKIP").is_none(), "{shell}: {error}");
            eprintln!("skipped: {shell} cannot be run: {error}");
            return None;
        }
    };
    assert!(output.status.success() && output.stderr.is_empty(), "{shell}: {output:?}");
    Some(String::from_utf8(output.stdout).expect("text"))
}

#[test]
fn shells_complete_verbs_and_options() {
    let path = |shell: Shell| assets().join("completions").join(shell.file());
    let bash = path(Shell::Bash);
    let script = "source \"$0\"; COMP_WORDS=(netvsc \"$@\"); COMP_CWORD=$#; \
                  _netvsc netvsc \"${!#}\" \"${COMP_WORDS[$#-1]}\"; echo \"${COMPREPLY[@]}\"";
    let bash = bash.to_str().expect("a path that is text");
    for (words, expected) in [(vec!["ls"], "lsvmbus"), (vec!["list", "--bri"], "--brief")] {
        let mut arguments = vec!["--norc", "-c", script, bash];
        arguments.extend(words);
        if let Some(text) = run("bash", &arguments) {
            assert_eq!(text.trim(), expected);
        }
    }
    let fish = path(Shell::Fish);
    let script = format!("source {}; complete -C 'netvsc li'", fish.display());
    if let Some(text) = run("fish", &["--no-config", "-c", &script]) {
        assert!(text.starts_with("list\t"), "{text}");
    }
    let zsh = path(Shell::Zsh);
    run("zsh", &["-f", "-n", zsh.to_str().expect("a path that is text")]);
}
