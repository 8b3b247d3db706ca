//! The configuration as facts, of which a reload tells those that it changes.

use super::files::Files;
use crate::config::Config;

/// The configuration and what its files hold, a line for each fact, with the bus that it is of.
pub(super) fn describe(config: &Config, files: &Files) -> Vec<String> {
    let text = format!("{}{}", config.describe(), files.describe());
    let (mut bus, mut label) = (String::new(), String::new());
    let mut facts = Vec::new();
    for line in text.lines().filter(|line| !line.is_empty()) {
        match line.strip_prefix("bus ") {
            Some(name) if !name.contains(' ') => bus = format!("bus {name}: "),
            _ => {
                // A list has its label once.
                let words: Vec<&str> = line.split_whitespace().collect();
                let is_more = line.starts_with("            ");
                if !is_more {
                    label = words.first().copied().unwrap_or_default().to_owned();
                }
                let text = words.join(" ");
                let text = if is_more {
                    format!("{label} {text}")
                } else {
                    text
                };
                let of = if line.starts_with(' ') { &bus[..] } else { "" };
                facts.push(format!("{of}{text}"));
            }
        }
    }
    facts
}

/// The facts that were and aren't, and those that weren't and are.
pub(super) fn changes(before: &[String], after: &[String]) -> Vec<String> {
    let gone = before.iter().filter(|line| !after.contains(line));
    let new = after.iter().filter(|line| !before.contains(line));
    let gone = gone.map(|line| format!("- {line}"));
    gone.chain(new.map(|line| format!("+ {line}"))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(brokers: &str) -> Vec<String> {
        let text = format!("[[bus]]\nname = \"control\"\nbrokers = {brokers}\n");
        describe(&Config::parse(&text).expect("valid"), &Files::default())
    }

    #[test]
    fn a_change_names_its_bus_and_its_list() {
        let before = facts(r#"["10.0.0.1", "10.0.0.2"]"#);
        let after = facts(r#"["10.0.0.1", "10.0.0.3"]"#);
        let expected = [
            "- bus control: brokers 2. 10.0.0.2:4222",
            "+ bus control: brokers 2. 10.0.0.3:4222",
        ];
        assert_eq!(changes(&before, &after), expected);
        assert!(changes(&after, &after).is_empty());
        assert!(before.iter().any(|fact| fact.starts_with("name ")));
    }
}
