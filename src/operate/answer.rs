//! Answers to commands, in words.

use serde_json::Value;

use crate::status::table::{Table, age, list, number, text};

/// Whether a command was carried out as a whole: nothing is left that couldn't move.
pub(super) fn is_whole(answer: &Value) -> bool {
    list(&answer["buses"]).iter().all(|bus| bus["left"] == 0)
}

/// The answer to a command, for a terminal.
pub(super) fn in_words(path: &str, answer: &Value) -> String {
    match path {
        "/move" | "/drain" => {
            let took = number(&answer["took_ms"]);
            let lines = list(&answer["buses"]).iter().map(|bus| {
                let (name, to) = (text(&bus["bus"]), text(&bus["to"]));
                let moved = number(&bus["moved"]);
                let left = match bus["left"].as_u64() {
                    None | Some(0) => String::new(),
                    Some(left) => format!(", {left} stay where they are"),
                };
                format!("bus {name}: {moved} connections moved to {to} in {took} ms{left}\n")
            });
            lines.collect()
        }
        "/undrain" => {
            let buses: Vec<String> = list(&answer["undrained"]).iter().map(text).collect();
            if buses.is_empty() {
                "it wasn't drained\n".to_owned()
            } else {
                format!("in use again for {}\n", buses.join(", "))
            }
        }
        "/pause" => {
            let seconds = answer["paused_for_ms"].as_f64().unwrap_or_default() / 1000.0;
            let (bus, lasts) = (text(&answer["bus"]), age(seconds));
            format!("bus {bus}: publishes wait for {lasts} at most; natsmux resume {bus} ends it\n")
        }
        "/resume" => {
            let bus = text(&answer["bus"]);
            if answer["was_paused"] == true {
                format!("bus {bus}: publishes go on\n")
            } else {
                format!("bus {bus} wasn't paused\n")
            }
        }
        "/kill" => format!("connection {} is closed\n", number(&answer["killed"])),
        "/reload" => {
            let changed = list(&answer["changed"]);
            if changed.is_empty() {
                return "no option has changed; keys and certificates were read again\n".to_owned();
            }
            changed.iter().map(|line| text(line) + "\n").collect()
        }
        _ => sessions(answer),
    }
}

fn sessions(answer: &Value) -> String {
    let mut table = Table::new(&[
        "CID", "BUS", "ADDRESS", "NAME", "USER", "IDENTITY", "SUBS", "IN", "OUT", "PENDING",
        "WAITING", "IDLE", "BROKER",
    ]);
    for session in list(&answer["sessions"]) {
        table.row(&[
            number(&session["cid"]),
            text(&session["bus"]),
            text(&session["address"]),
            text(&session["name"]),
            text(&session["user"]),
            text(&session["identity"]),
            number(&session["subscriptions"]),
            number(&session["in_msgs"]),
            number(&session["out_msgs"]),
            number(&session["pending_bytes"]),
            number(&session["waiting"]),
            age(session["idle_seconds"].as_f64().unwrap_or_default()),
            text(&session["broker"]),
        ]);
    }
    table.draw()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_move_says_what_stays() {
        let answer = json!({
            "buses": [
                {"bus": "control", "to": "10.0.0.2:4222", "moved": 12, "left": 0},
                {"bus": "services", "to": "10.0.0.3:4222", "moved": 1, "left": 2},
            ],
            "took_ms": 84,
        });
        assert_eq!(
            in_words("/drain", &answer),
            "bus control: 12 connections moved to 10.0.0.2:4222 in 84 ms\n\
             bus services: 1 connections moved to 10.0.0.3:4222 in 84 ms, 2 stay where they are\n"
        );
        assert!(!is_whole(&answer));
    }

    #[test]
    fn texts_of_components_are_shown_without_what_a_terminal_obeys() {
        let answer = json!({ "sessions": [{"cid": 7, "name": "a\u{1b}[2Jb"}] });
        let shown = in_words("/sessions", &answer);
        assert!(shown.contains("a[2Jb"), "{shown}");
        assert!(is_whole(&answer));
    }
}
