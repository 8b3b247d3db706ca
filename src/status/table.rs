//! Tables for a terminal.

use std::time::Duration;

use serde_json::Value;

/// Everything on one page. `since` is an earlier answer and its age: with it, rates are shown.
pub(super) fn page(varz: &Value, since: Option<(Duration, &Value)>) -> String {
    let mut page = format!(
        "natsmux {} {}, up {}, {} of {} sessions, {} MB\n\n",
        text(&varz["server_name"]),
        text(&varz["version"]),
        text(&varz["uptime"]),
        number(&varz["connections"]),
        number(&varz["max_connections"]),
        varz["mem"].as_u64().unwrap_or_default() >> 20,
    );
    let buses = list(&varz["natsmux"]["buses"]);
    let before = since.map(|(age, varz)| (age, list(&varz["natsmux"]["buses"])));
    let mut table = Table::new(&[
        "BUS",
        "HEALTH",
        "SESSIONS",
        "SUBS",
        "IN/S",
        "OUT/S",
        "WAITING",
        "IN DOUBT",
        "DROPPED",
        "FAILOVERS",
        "SLOW",
    ]);
    for bus in buses {
        let earlier = before.and_then(|(age, buses)| {
            let same = buses
                .iter()
                .find(|earlier| earlier["name"] == bus["name"])?;
            Some((age, same))
        });
        table.row(&[
            text(&bus["name"]),
            health(bus),
            number(&bus["sessions"]),
            number(&bus["subscriptions"]),
            rate(&bus["in_msgs"], earlier, "in_msgs"),
            rate(&bus["out_msgs"], earlier, "out_msgs"),
            number(&bus["waiting"]),
            number(&bus["in_doubt"]),
            number(&bus["dropped"]),
            number(&bus["failovers"]),
            number(&bus["slow_consumers"]),
        ]);
    }
    page += &table.draw();
    page.push('\n');
    let mut table = Table::new(&[
        "BUS",
        "BROKER",
        "STATE",
        "SINCE",
        "VERSION",
        "LINKS",
        "FAILURES",
        "LAST ERROR",
    ]);
    for bus in buses {
        for broker in list(&bus["brokers"]) {
            let current = broker["addr"] == bus["current"];
            let mark = if current { " *" } else { "" };
            table.row(&[
                text(&bus["name"]),
                text(&broker["addr"]) + mark,
                state(broker),
                age(broker["since_seconds"].as_f64().unwrap_or_default()),
                text(&broker["version"]),
                number(&broker["links"]),
                number(&broker["failures"]),
                text(&broker["last_error"]),
            ]);
        }
    }
    page + &table.draw()
}

pub(crate) fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

/// A text without anything that a terminal would obey; `-` for none.
pub(crate) fn text(value: &Value) -> String {
    let turns = |c: &char| matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    let obeyed = |c: &char| c.is_control() || turns(c);
    let clean = |text: &str| text.chars().filter(|c| !obeyed(c)).collect();
    value.as_str().map_or_else(|| "-".to_owned(), clean)
}

pub(crate) fn number(value: &Value) -> String {
    value.as_u64().unwrap_or_default().to_string()
}

/// `ok`, and what an operator has asked for.
fn health(bus: &Value) -> String {
    let mut words = vec![
        if bus["healthy"] == true {
            "ok"
        } else {
            "NO BROKER"
        }
        .to_owned(),
    ];
    if let Some(left) = bus["paused_seconds"].as_f64() {
        words.push(format!("paused {}", age(left)));
    }
    if let Some(moving) = bus["moving"].as_u64().filter(|moving| *moving > 0) {
        words.push(format!("{moving} moving"));
    }
    words.join(", ")
}

fn state(broker: &Value) -> String {
    let drained = if broker["drained"] == true {
        ", drained"
    } else {
        ""
    };
    text(&broker["state"]) + drained
}

fn rate(now: &Value, earlier: Option<(Duration, &Value)>, key: &str) -> String {
    let Some((age, earlier)) = earlier else {
        return "-".to_owned();
    };
    let count = |value: &Value| value.as_u64().unwrap_or_default();
    // One that was started again counts from zero.
    let more = count(now).saturating_sub(count(&earlier[key]));
    format!("{:.0}", more as f64 / age.as_secs_f64().max(0.001))
}

/// Seconds as an operator reads them: `850ms`, `5s`, `4m5s`, `3h4m`, `2d3h`.
pub(crate) fn age(seconds: f64) -> String {
    if seconds < 1.0 {
        return format!("{:.0}ms", seconds.max(0.0) * 1000.0);
    }
    let total = seconds as u64;
    let (days, hours, minutes) = (total / 86_400, total / 3600 % 24, total / 60 % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{total}s"),
        (0, 0, _) => format!("{minutes}m{}s", total % 60),
        (0, ..) => format!("{hours}h{minutes}m"),
        _ => format!("{days}d{hours}h"),
    }
}

pub(crate) struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    pub(crate) fn new(heads: &[&str]) -> Self {
        let heads = heads.iter().map(|head| (*head).to_owned()).collect();
        Self { rows: vec![heads] }
    }

    pub(crate) fn row(&mut self, cells: &[String]) {
        self.rows.push(cells.to_vec());
    }

    /// Columns as wide as their widest cell.
    pub(crate) fn draw(&self) -> String {
        let columns = self.rows[0].len();
        let width = |column: usize| {
            let cells = self.rows.iter().map(|row| row[column].chars().count());
            cells.max().unwrap_or_default()
        };
        let widths: Vec<usize> = (0..columns).map(width).collect();
        let mut drawn = String::new();
        for row in &self.rows {
            let cells = row.iter().zip(&widths);
            let cells: Vec<_> = cells
                .map(|(cell, width)| format!("{cell:width$}"))
                .collect();
            drawn += cells.join("  ").trim_end();
            drawn.push('\n');
        }
        drawn
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn varz(in_msgs: u64) -> Value {
        json!({
            "server_name": "host7", "version": "0.1.0", "uptime": "3h4m5s",
            "connections": 12, "max_connections": 100, "mem": 34_000_000,
            "natsmux": {"buses": [{
                "name": "control", "healthy": false, "sessions": 12, "subscriptions": 33,
                "in_msgs": in_msgs, "out_msgs": 5, "waiting": 7, "in_doubt": 1, "dropped": 0,
                "failovers": 2, "slow_consumers": 0, "current": "10.0.0.2:4222",
                "brokers": [
                    {"addr": "10.0.0.1:4222", "state": "down", "since_seconds": 75.2,
                     "last_error": "connection\x1b[31m refused", "version": null,
                     "links": 0, "failures": 9},
                    {"addr": "10.0.0.2:4222", "state": "up", "since_seconds": 0.25,
                     "last_error": null, "version": "2.15.1", "links": 12, "failures": 0},
                ],
            }]},
        })
    }

    #[test]
    fn everything_is_on_one_page() {
        let page = page(&varz(10), None);
        assert_eq!(
            page,
            "natsmux host7 0.1.0, up 3h4m5s, 12 of 100 sessions, 32 MB

BUS      HEALTH     SESSIONS  SUBS  IN/S  OUT/S  WAITING  IN DOUBT  DROPPED  FAILOVERS  SLOW
control  NO BROKER  12        33    -     -      7        1         0        2          0

BUS      BROKER           STATE  SINCE  VERSION  LINKS  FAILURES  LAST ERROR
control  10.0.0.1:4222    down   1m15s  -        0      9         connection[31m refused
control  10.0.0.2:4222 *  up     250ms  2.15.1   12     0         -
"
        );
    }

    #[test]
    fn a_pause_a_move_and_a_drained_broker_are_shown() {
        let mut varz = varz(10);
        let bus = &mut varz["natsmux"]["buses"][0];
        bus["healthy"] = json!(true);
        bus["paused_seconds"] = json!(12.5);
        bus["moving"] = json!(3);
        bus["brokers"][1]["drained"] = json!(true);
        let page = page(&varz, None);
        assert!(page.contains("ok, paused 12s, 3 moving"), "{page}");
        assert!(page.contains("up, drained"), "{page}");
    }

    #[test]
    fn two_looks_make_a_rate_and_a_restart_none() {
        let earlier = varz(10);
        let shown = |now: u64| {
            let page = page(&varz(now), Some((Duration::from_secs(2), &earlier)));
            let row = page.lines().find(|line| line.starts_with("control"));
            row.unwrap_or_default()
                .split_whitespace()
                .nth(5)
                .map(str::to_owned)
        };
        assert_eq!(shown(2010).as_deref(), Some("1000"));
        assert_eq!(shown(3).as_deref(), Some("0"));
    }

    #[test]
    fn ages_are_short() {
        for (seconds, shown) in [
            (0.0, "0ms"),
            (59.9, "59s"),
            (61.0, "1m1s"),
            (3_700.0, "1h1m"),
            (200_000.0, "2d7h"),
        ] {
            assert_eq!(age(seconds), shown);
        }
    }
}
