//! Calls of a shell, and of tools that images have beside one, as manifests for
//! kubevirt/macvtap-cni make them: to look for the device plugin's sockets, to copy the CNI plugin,
//! to start a program. Pure.
//!
//! Our image has no such tools. What is asked of them for these purposes this program does itself;
//! anything else is refused.

use std::{iter::Peekable, path::Path, str::Chars};

/// The names by which a call is one of a shell.
pub const SHELLS: [&str; 2] = ["bash", "sh"];
/// The names by which a call copies a file.
pub const COPIES: [&str; 2] = ["cp", "install"];
/// The names by which a call looks at files.
pub const TESTS: [&str; 6] = ["[", "[[", "find", "ls", "stat", "test"];
/// What `find` may do beside finding.
const ACTIONS: [&str; 5] = ["-delete", "-exec", "-execdir", "-ok", "-okdir"];
/// Commands that may stand beside a test.
const BESIDE_TESTS: [&str; 10] = [
    ":", "cat", "echo", "exit", "false", "grep", "head", "set", "true", "wc",
];
/// Commands that may stand beside a copy: a copy by us includes what they do, or they do nothing. A
/// directory above the target has to exist, for it is the node's.
const BESIDE_COPIES: [&str; 11] = [
    ":", "chmod", "chown", "echo", "exit", "mkdir", "mv", "rm", "set", "sync", "true",
];
/// Words that stand before a command, and mean nothing here.
const PREFIXES: [&str; 2] = ["command", "exec"];
/// Words that decide whether commands are run.
const BRANCHES: [&str; 6] = ["else", "fi", "if", "then", "{", "}"];
/// Options of `cp` by which it does not copy over each file: -n and -u, spelt out.
const CONDITIONS: [&str; 2] = ["no-clobber", "update"];
/// What ends a word.
const ENDS: [char; 10] = [' ', '\t', '\n', ';', '&', '|', '(', ')', '<', '>'];
/// The beginning of the names of our programs.
const PROGRAM: &str = "macvtap";
/// The beginning of the names of the device plugin's sockets.
const SOCKETS: &str = "macvtap.network.kubevirt.io";
/// Options of `cp` and `install` that have a value.
const VALUES: [char; 5] = ['S', 'g', 'm', 'o', 't'];
/// The same, spelt out.
const LONG_VALUES: [&str; 5] = ["suffix", "group", "mode", "owner", "target-directory"];

/// What a call means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Meaning {
    /// Whether the device plugin has sockets in this directory.
    Probe(String),
    /// Copy a file; the operands of `cp`.
    Copy(Vec<String>),
    /// Start one of our programs, with arguments.
    Program(Vec<String>),
    /// Succeed or fail: the script looks at the sockets, and what it finds makes no difference.
    Exit(bool),
}

/// What a call of a shell means; none if it is anything else.
#[must_use]
pub fn shell(arguments: &[&str]) -> Option<Meaning> {
    let (script, options) = script(arguments)?;
    // `exit $?` passes the outcome on; other values are not known.
    let script = script.replace("$?", "");
    if script.contains(['$', '`']) {
        return None;
    }
    let all = commands(&script);
    let simple = all.iter().map(|command| &command.words);
    let simple = simple.filter(|words| !BRANCHES.contains(&words[0].as_str()));
    let commands: Vec<Vec<String>> = simple.cloned().collect();
    let are = |names: &[&[&str]]| {
        let mut all = commands.iter().map(|words| base_name(&words[0]));
        all.all(|name| names.iter().any(|names| names.contains(&name)))
    };
    match commands.as_slice() {
        [words] if base_name(&words[0]).starts_with(PROGRAM) => {
            Some(Meaning::Program(words.clone()))
        }
        _ if are(&[&TESTS, &BESIDE_TESTS]) => {
            let probe = probe(&commands.concat())?;
            match [true, false].map(|found| outcome(&all, options, found)) {
                [true, false] => Some(probe),
                [false, true] => None,
                [same, _] => Some(Meaning::Exit(same)),
            }
        }
        _ if are(&[&COPIES, &BESIDE_COPIES]) => installation(&commands).map(Meaning::Copy),
        _ => None,
    }
}

/// The operands of the one copy among these commands. It may be renamed after; a copy by us replaces
/// its target at once, so that nothing needs to be removed before.
fn installation(commands: &[Vec<String>]) -> Option<Vec<String>> {
    let named = |names: &'static [&str]| {
        let is_named = |words: &&Vec<String>| names.contains(&base_name(&words[0]));
        commands.iter().filter(is_named)
    };
    let mut copies = named(&COPIES);
    let only = copies.next().filter(|_| copies.next().is_none())?;
    let mut operands = operands(&only[1..])?;
    let target = operands.last_mut()?;
    let written = target.clone();
    for words in named(&["mv"]) {
        match paths(words).as_slice() {
            // Into a directory it would keep the name that it has.
            [from, to] if *from == target && base_name(to).starts_with(PROGRAM) => {
                (*to).clone_into(target);
            }
            _ => return None,
        }
    }
    let is_replaced = |path: &&str| *path == written || *path == target.as_str();
    let removes_others = named(&["rm"]).any(|words| !paths(words).iter().all(is_replaced));
    // The CNI directory is mounted; one that is to be made and copied into would not be there.
    let makes_others = named(&["mkdir"]).any(|words| {
        let parent = Path::new(target.as_str()).parent();
        let is_above = |path: &&str| parent.is_some_and(|parent| parent.starts_with(path));
        !paths(words).iter().all(is_above)
    });
    (!removes_others && !makes_others).then_some(operands)
}

/// The words of a command that are no options.
fn paths(words: &[String]) -> Vec<&str> {
    let words = words[1..].iter().map(String::as_str);
    words.filter(|word| !word.starts_with('-')).collect()
}

/// Whether a script of tests succeeds where each of them does, or where none does.
fn outcome(commands: &[Command], mut options: Options, found: bool) -> bool {
    let (mut succeeds, mut is_run, mut is_condition) = (true, true, false);
    for (index, command) in commands.iter().enumerate() {
        let Command {
            operator, words, ..
        } = command;
        let argument = words.get(1).map(String::as_str);
        let skips = if succeeds { "||" } else { "&&" };
        match base_name(&words[0]) {
            "if" => is_condition = true,
            "then" => (is_run, is_condition) = (succeeds, false),
            "else" => is_run = !is_run,
            // A branch that is not there succeeds.
            "fi" => (succeeds, is_run) = (succeeds || !is_run, true),
            "{" => is_run = !operator.starts_with(skips),
            "}" => is_run = true,
            _ if !is_run || operator.starts_with(skips) => {}
            "exit" => return argument.map_or(succeeds, |value| value == "0"),
            "set" => options.set(&words[1..]),
            _ => {
                let before = succeeds || !options.pipefail || operator != "|";
                succeeds = before && command.succeeds(found);
                let next = commands.get(index + 1);
                let is_looked_at = next.is_some_and(|next| next.operator.starts_with(['&', '|']));
                if options.errexit && !(succeeds || is_condition || is_looked_at) {
                    return false;
                }
            }
        }
    }
    succeeds
}

/// What a shell does about failures.
#[derive(Clone, Copy, Default)]
struct Options {
    /// The first one ends the script.
    errexit: bool,
    /// One in a pipe is the pipe's.
    pipefail: bool,
}

impl Options {
    /// Sets those of a word of letters, and of `next` by its name where the letters end with `o`.
    fn read(&mut self, letters: &str, next: Option<&str>) {
        let name = next.filter(|_| letters.ends_with('o'));
        self.errexit |= letters.contains('e') || name == Some("errexit");
        self.pipefail |= name == Some("pipefail");
    }

    /// Sets those of the command `set`.
    fn set(&mut self, words: &[String]) {
        for (index, word) in words.iter().enumerate() {
            if let Some(letters) = word.strip_prefix('-') {
                self.read(letters, words.get(index + 1).map(String::as_str));
            }
        }
    }
}

/// Whether an option of grep turns its outcome around.
fn is_inverse(word: &str) -> bool {
    let letters = word.strip_prefix('-');
    let letters = letters.filter(|letters| !letters.starts_with('-'));
    word == "--invert-match" || letters.is_some_and(|letters| letters.contains(['v', 'L']))
}

/// What a call of one of [`TESTS`] means, by its words; none if it is not about the sockets.
#[must_use]
pub fn probe(words: &[String]) -> Option<Meaning> {
    if words.iter().any(|word| ACTIONS.contains(&word.as_str())) {
        return None;
    }
    let is_of_sockets =
        |name: &str| name.starts_with(SOCKETS) || (name.contains('*') && name.contains(PROGRAM));
    let paths = || words.iter().filter(|word| word.starts_with('/'));
    let directory = paths().find_map(|path| {
        let (directory, name) = path.rsplit_once('/')?;
        is_of_sockets(name).then_some(directory)
    });
    // As in `ls DIRECTORY | grep NAME` and `find DIRECTORY -name PATTERN`.
    let named = || {
        words
            .iter()
            .any(|word| !word.starts_with('/') && word.contains(PROGRAM))
    };
    let listed = || paths().next().filter(|_| named());
    let directory = directory.or_else(|| listed().map(|path| path.trim_end_matches('/')));
    directory.map(|directory| Meaning::Probe(directory.to_owned()))
}

/// What `cp` or `install` with these arguments means. Options such as -f and -m say what a copy by
/// us does anyway; none if one says not to copy over a file.
#[must_use]
pub fn copy(arguments: &[String]) -> Option<Meaning> {
    operands(arguments).map(Meaning::Copy)
}

fn operands(arguments: &[String]) -> Option<Vec<String>> {
    let (mut operands, mut directory) = (Vec::new(), None);
    let mut words = arguments.iter();
    while let Some(word) = words.next() {
        let Some(option) = word.strip_prefix('-').filter(|option| !option.is_empty()) else {
            operands.push(word.clone());
            continue;
        };
        if option == "-" {
            operands.extend(words.by_ref().cloned());
        } else if is_conditional(option) {
            return None;
        } else if let Some((option, value)) = with_value(option) {
            let value = value.map(str::to_owned).or_else(|| words.next().cloned());
            directory = value.filter(|_| option.starts_with('t')).or(directory);
        }
    }
    operands.extend(directory);
    Some(operands)
}

/// Whether an option keeps some files from being copied over.
fn is_conditional(option: &str) -> bool {
    if let Some(long) = option.strip_prefix('-') {
        let (name, _) = long.split_once('=').unwrap_or((long, ""));
        return CONDITIONS.contains(&name);
    }
    let letters = &option[..option.find(VALUES).unwrap_or(option.len())];
    letters.contains(['n', 'u'])
}

/// An option that has a value, and the value if the same word has it.
fn with_value(option: &str) -> Option<(&str, Option<&str>)> {
    if let Some(long) = option.strip_prefix('-') {
        let (name, value) = match long.split_once('=') {
            Some((name, value)) => (name, Some(value)),
            None => (long, None),
        };
        return LONG_VALUES.contains(&name).then_some((name, value));
    }
    let option = &option[option.find(VALUES)?..];
    Some((option, Some(&option[1..]).filter(|value| !value.is_empty())))
}

/// The script of `sh -c SCRIPT`; other options may stand before it or in the same word.
fn script<'a>(arguments: &[&'a str]) -> Option<(&'a str, Options)> {
    let mut words = arguments.iter().copied();
    let (mut is_script, mut options) = (false, Options::default());
    while let Some(word) = words.next() {
        let Some(letters) = word.strip_prefix(['-', '+']) else {
            return Some((word, options)).filter(|_| is_script);
        };
        if !letters.starts_with('-') {
            is_script |= letters.contains('c');
            let name = words.clone().next();
            if word.starts_with('-') {
                options.read(letters, name);
            }
            if letters.ends_with('o') {
                words.next();
            }
        }
    }
    None
}

/// A simple command without redirections, or one of [`BRANCHES`].
#[derive(Default)]
struct Command {
    /// What stands between it and the former one.
    operator: String,
    /// Whether `!` stands before it.
    is_negated: bool,
    words: Vec<String>,
}

impl Command {
    /// Whether it succeeds, by whether its tests do.
    fn succeeds(&self, found: bool) -> bool {
        let words = &self.words;
        let (name, is_test_of_none) = (
            base_name(&words[0]),
            words.get(1).is_some_and(|it| it == "!"),
        );
        let succeeds = match name {
            "false" => false,
            "grep" => found != words.iter().any(|word| is_inverse(word)),
            // It succeeds without a match.
            "find" => true,
            name => !TESTS.contains(&name) || found != is_test_of_none,
        };
        succeeds != self.is_negated
    }
}

/// The commands of a script.
fn commands(script: &str) -> Vec<Command> {
    let mut commands = vec![Command::default()];
    let mut is_redirected = false;
    let mut chars = script.chars().peekable();
    while let Some(char) = chars.next() {
        match char {
            ' ' | '\t' => {}
            '#' => while chars.next_if(|char| *char != '\n').is_some() {},
            '&' if chars.peek() == Some(&'>') => {}
            '<' | '>' => {
                is_redirected = true;
                while chars.next_if(|char| "<>&|".contains(*char)).is_some() {}
            }
            char if ENDS.contains(&char) => end(&mut commands, char),
            first => {
                let word = word(first, &mut chars);
                let is_descriptor = chars.peek().is_some_and(|next| "<>".contains(*next))
                    && word.chars().all(|char| char.is_ascii_digit());
                if !std::mem::take(&mut is_redirected) && !is_descriptor {
                    add(&mut commands, word);
                }
            }
        }
    }
    commands.retain(|command| !command.words.is_empty());
    commands
}

fn end(commands: &mut Vec<Command>, operator: char) {
    match commands.last_mut() {
        Some(last) if last.words.is_empty() => last.operator.push(operator),
        _ => commands.push(Command {
            operator: operator.into(),
            ..Command::default()
        }),
    }
}

fn add(commands: &mut Vec<Command>, word: String) {
    let Some(command) = commands.last_mut() else {
        return;
    };
    let is = |names: &[&str]| command.words.is_empty() && names.contains(&word.as_str());
    let is_branch = is(&BRANCHES);
    if is(&["!"]) {
        command.is_negated = !command.is_negated;
    } else if !is(&PREFIXES) && !word.is_empty() {
        command.words.push(word);
    }
    if is_branch {
        commands.push(Command::default());
    }
}

/// A word, which begins with `first`, without its quotes.
fn word(first: char, rest: &mut Peekable<Chars<'_>>) -> String {
    let (mut word, mut quote, mut next) = (String::new(), None, Some(first));
    while let Some(char) = next {
        match (quote, char) {
            (Some(open), char) if char == open => quote = None,
            (None, '"' | '\'') => quote = Some(char),
            (None, '\\') => word.extend(rest.next().filter(|char| *char != '\n')),
            (_, char) => word.push(char),
        }
        next = rest.next_if(|char| quote.is_some() || !ENDS.contains(char));
    }
    word
}

fn base_name(path: &str) -> &str {
    path.rsplit_once('/').map_or(path, |(_, name)| name)
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIR: &str = "/var/lib/kubelet/device-plugins";
    const TARGET: &str = "/host/opt/cni/bin/macvtap";

    fn read(script: &str) -> Option<Meaning> {
        shell(&["-c", script])
    }

    fn owned(words: &[&str]) -> Vec<String> {
        words.iter().map(|word| (*word).to_owned()).collect()
    }

    #[test]
    fn probes_of_the_device_plugins_sockets() {
        for script in [
            "ls DIR/macvtap.network.kubevirt.io* >/dev/null 2>&1",
            "ls -l DIR/macvtap.network.kubevirt.io* > /dev/null",
            "ls -A DIR/macvtap.network.kubevirt.io* 2> /dev/null 1>&2",
            "ls DIR/macvtap.network.kubevirt.io* &>/dev/null",
            "ls DIR/macvtap.network.kubevirt.io_eth0",
            "ls DIR/macvtap*",
            "ls DIR/*macvtap*",
            "/bin/ls DIR/macvtap.network.kubevirt.io* 1>/dev/null 2>/dev/null",
            "test -S DIR/macvtap.network.kubevirt.io*",
            "test -e \"DIR/macvtap.network.kubevirt.io*\"",
            "/usr/bin/test -S 'DIR/macvtap.network.kubevirt.io_eth0'",
            "[ -S DIR/macvtap.network.kubevirt.io* ]",
            "[[ -S DIR/macvtap.network.kubevirt.io_eth0 ]]",
            "[ -e DIR/macvtap.network.kubevirt.io_a -a -e DIR/macvtap.network.kubevirt.io_b ]",
            "exec ls DIR/macvtap.network.kubevirt.io*",
            "ls DIR/macvtap.network.kubevirt.io* || exit 1",
            "ls DIR/macvtap.network.kubevirt.io*; exit $?",
            "ls DIR/macvtap.network.kubevirt.io* && exit 0 || exit 1",
            "test -S DIR/macvtap.network.kubevirt.io_a && test -S DIR/macvtap.network.kubevirt.io_b",
            "if ls DIR/macvtap.network.kubevirt.io* > /dev/null; then exit 0; else exit 1; fi",
            "if [ -S DIR/macvtap.network.kubevirt.io_a ]; then\n  echo up\nelse\n  exit 1\nfi\n",
            "if ls DIR/macvtap.network.kubevirt.io*; then exit 0; fi; exit 1",
            "ls DIR | grep macvtap",
            "ls -1 DIR/ | grep -q macvtap.network.kubevirt.io",
            "find DIR -name 'macvtap.network.kubevirt.io*' -type s | grep -q .",
            "stat DIR/macvtap.network.kubevirt.io*",
            "# is it there?\nls \\\n  DIR/macvtap.network.kubevirt.io*",
            "set -e; ls DIR/macvtap.network.kubevirt.io*; echo up",
            "set -eu\ntest -S DIR/macvtap.network.kubevirt.io_a\nexit 0",
            "set -o pipefail; ls DIR/macvtap.network.kubevirt.io* | head -1",
            "ls DIR/macvtap.network.kubevirt.io* | head -1 | grep -q macvtap",
            "ls DIR/macvtap.network.kubevirt.io* || { echo down; exit 1; }",
            "ls DIR/macvtap.network.kubevirt.io* && { exit 0; } || { exit 1; }",
            "{ ls DIR/macvtap.network.kubevirt.io*; }",
            "if ! ls DIR/macvtap.network.kubevirt.io*; then exit 1; fi",
            "if [ ! -S DIR/macvtap.network.kubevirt.io_a ]; then echo down; exit 1; fi",
            "[ ! -S DIR/macvtap.network.kubevirt.io_a ] && exit 1 || exit 0",
            "false || ls DIR/macvtap.network.kubevirt.io*",
        ] {
            let expected = Some(Meaning::Probe(DIR.to_owned()));
            assert_eq!(read(&script.replace("DIR", DIR)), expected, "{script}");
        }
    }

    #[test]
    fn copies_of_the_plugin() {
        for script in [
            "cp /macvtap-cni TARGET",
            "exec cp /macvtap-cni TARGET;",
            "cp -f /macvtap-cni TARGET",
            "/bin/cp --remove-destination -v /macvtap-cni 'TARGET'",
            "cp -a -- /macvtap-cni TARGET",
            "cp --preserve=mode /macvtap-cni TARGET",
            "cp -fS .old /macvtap-cni TARGET",
            "cp --suffix=.old /macvtap-cni TARGET",
            "install /macvtap-cni TARGET",
            "install -m 755 /macvtap-cni TARGET",
            "install -m755 -o root -g root /macvtap-cni TARGET",
            "install -Dm 0755 /macvtap-cni TARGET",
            "/usr/bin/install --mode=0755 --owner root /macvtap-cni TARGET",
            "cp /macvtap-cni TARGET && chmod 755 TARGET",
            "cp /macvtap-cni TARGET; chown root:root TARGET; sync; echo done; exit 0",
            "set -ex; cp /macvtap-cni TARGET",
            "set -o errexit\ncp /macvtap-cni \\\n   TARGET\n",
            "cp /macvtap-cni TARGET > /dev/null 2>&1 || exit 1",
            "rm -f TARGET; cp /macvtap-cni TARGET",
            "rm -f TARGET && cp -f /macvtap-cni TARGET && chmod +x TARGET",
            "cp /macvtap-cni TARGET.new && mv -f TARGET.new TARGET",
            "rm -f TARGET.new; cp /macvtap-cni TARGET.new; mv TARGET.new TARGET",
            "mkdir -p /host/opt/cni/bin && cp /macvtap-cni TARGET",
            "cp -t TARGET /macvtap-cni",
            "cp -ft TARGET /macvtap-cni",
            "cp -tTARGET /macvtap-cni",
            "cp --target-directory=TARGET /macvtap-cni",
            "install -m 755 --target-directory TARGET /macvtap-cni",
        ] {
            let expected = Meaning::Copy(owned(&["/macvtap-cni", TARGET]));
            assert_eq!(
                read(&script.replace("TARGET", TARGET)),
                Some(expected),
                "{script}"
            );
        }
    }

    #[test]
    fn programs() {
        let words = ["/macvtap-deviceplugin", "-v", "3", "-logtostderr"];
        let expected = Some(Meaning::Program(owned(&words)));
        for script in [
            "/macvtap-deviceplugin -v 3 -logtostderr",
            "exec /macvtap-deviceplugin -v 3 '-logtostderr' 2>&1",
            "exec \"/macvtap-deviceplugin\" \\\n  -v 3 \\\n  -logtostderr\n",
        ] {
            assert_eq!(read(script), expected, "{script}");
        }
    }

    #[test]
    fn a_shell_has_options() {
        let script = format!("ls {DIR}/macvtap*");
        let expected = Some(Meaning::Probe(DIR.to_owned()));
        let loud = format!("{script}; echo done");
        for (options, meaning) in [
            (&["-ec"][..], expected.clone()),
            (&["-o", "errexit", "-c"], expected.clone()),
            (&["+e", "-c"], Some(Meaning::Exit(true))),
        ] {
            assert_eq!(shell(&[options, &[&loud]].concat()), meaning, "{options:?}");
        }
        for options in [
            &["-c"][..],
            &["-ec"],
            &["-ce"],
            &["-e", "-c"],
            &["-c", "-e"],
            &["-xec"],
            &["-o", "pipefail", "-c"],
            &["-euo", "pipefail", "-c"],
            &["-eo", "pipefail", "-c"],
            &["--noprofile", "--norc", "-c"],
            &["-lc"],
            &["+e", "-c"],
            &["-c", "--"],
        ] {
            let arguments = [options, &[&script, "name", "argument"]].concat();
            assert_eq!(shell(&arguments), expected, "{options:?}");
        }
    }

    /// As with the original's image.
    #[test]
    fn scripts_that_ignore_what_they_find_have_one_outcome() {
        for (script, expected) in [
            ("ls SOCKETS || true", true),
            ("ls SOCKETS; exit 0", true),
            ("ls SOCKETS; echo done", true),
            ("if ls SOCKETS; then echo up; fi", true),
            ("ls SOCKETS | wc -l", true),
            ("find DIR -name 'macvtap*'", true),
            ("ls SOCKETS | cat", true),
            ("ls SOCKETS && exit 1; exit 1", false),
            ("ls SOCKETS && false", false),
        ] {
            let sockets = "DIR/macvtap.network.kubevirt.io*";
            let script = script.replace("SOCKETS", sockets).replace("DIR", DIR);
            assert_eq!(read(&script), Some(Meaning::Exit(expected)), "{script}");
        }
    }

    #[test]
    fn scripts_that_turn_around_an_outcome_are_refused() {
        for script in [
            "ls DIR/macvtap.network.kubevirt.io* && exit 1 || exit 0",
            "if ls DIR/macvtap.network.kubevirt.io*; then exit 1; fi",
            "ls DIR/ | grep -v macvtap",
            "ls DIR/ | grep -qv macvtap",
            "ls DIR/ | grep --invert-match macvtap",
            "cp -n a b",
            "cp -fn a b",
            "cp --no-clobber a b",
            "cp -u a b",
            "cp --update=older a b",
        ] {
            assert_eq!(read(&script.replace("DIR", DIR)), None, "{script}");
        }
    }

    #[test]
    fn copies_beside_which_other_files_change_are_refused() {
        for script in [
            "cp a b; cp c d",
            "cp a b; rm c",
            "mkdir -p /y && cp a /x",
            "mkdir -p /host/opt/cni/bin && cp /macvtap-cni /host/opt/cni/bin",
            "cp /macvtap-cni /tmp/macvtap && mv /tmp/macvtap /host/opt/cni/bin/",
            "cp a b && mv c b",
            "cp a b && mv b c d",
            "rm -rf / && cp a b",
        ] {
            assert_eq!(read(script), None, "{script}");
        }
    }

    #[test]
    fn anything_else_is_refused() {
        for script in [
            "",
            "ls",
            "ls /",
            "echo hello",
            "test -S /x",
            "ls DIR",
            "ls /opt/cni/bin/macvtap",
            "rm -rf DIR/macvtap.network.kubevirt.io*",
            "rm -f DIR/macvtap.network.kubevirt.io*; ls DIR/macvtap.network.kubevirt.io*",
            "! ls DIR/macvtap.network.kubevirt.io*",
            "[ ! -S DIR/macvtap.network.kubevirt.io_a ]",
            "ls $DIR/macvtap.network.kubevirt.io*",
            "ls `cat /dir`/macvtap*",
            "find DIR/ -name 'macvtap*' -delete",
            "find DIR/ -name 'macvtap*' -exec rm {} ;",
            "sleep 5",
            "/macvtap-deviceplugin -v 3 | tee /log",
            "/macvtap-deviceplugin & wait",
        ] {
            assert_eq!(
                read(&script.replace("DIR/", &format!("{DIR}/"))),
                None,
                "{script}"
            );
        }
        for arguments in [
            &[][..],
            &["-x"],
            &["x", "ls /"],
            &["-c"],
            &["-o", "-c"],
            &["ls"],
        ] {
            assert_eq!(shell(arguments), None, "{arguments:?}");
        }
    }
}
