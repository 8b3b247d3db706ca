//! A headless Chromium with one page.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::{target_dir, wait_for};

/// Where Debian's package puts it.
const CHROMIUM: &str = "/usr/bin/chromium";

/// How wide, how high, and whether it asks for a dark page.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Screen {
    pub(crate) width: u32,
    pub(crate) height: u32,
    pub(crate) dark: bool,
}

/// The browser. Dropping it ends it.
#[derive(Debug)]
pub(crate) struct Browser {
    child: Child,
    /// Taken when it is dropped: the program ends with its input.
    orders: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
}

impl Browser {
    pub(crate) fn start() -> Self {
        let modules = target_dir().join("tools/npm/node_modules");
        for needed in [Path::new(CHROMIUM), &modules.join("playwright-core")] {
            let shown = needed.display();
            assert!(needed.exists(), "{shown} is missing: run `make test`");
        }
        let program = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/page/browser.cjs");
        let mut child = Command::new("node")
            .arg(program)
            .env("NODE_PATH", modules)
            .env("CHROMIUM", CHROMIUM)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("node");
        let orders = child.stdin.take();
        let answers = BufReader::new(child.stdout.take().expect("piped"));
        Self {
            child,
            orders,
            answers,
        }
    }

    /// Opens a page anew.
    pub(crate) fn open(&mut self, url: &str, screen: Screen) {
        let Screen {
            width,
            height,
            dark,
        } = screen;
        self.order(&json!({ "open": url, "width": width, "height": height, "dark": dark }));
    }

    /// What a JavaScript expression says in the page.
    pub(crate) fn run(&mut self, expression: &str) -> Value {
        self.order(&json!({ "run": expression }))
    }

    /// The text of the first element that a selector finds; empty where there is none.
    pub(crate) fn text(&mut self, selector: &str) -> String {
        let text = self.run(&format!(
            "document.querySelector({})?.innerText ?? ''",
            json!(selector)
        ));
        text.as_str().unwrap_or_default().to_owned()
    }

    /// Waits until `test` holds for an element's text; returns how long that took.
    pub(crate) fn wait_text(
        &mut self,
        selector: &str,
        patience: Duration,
        test: impl Fn(&str) -> bool,
    ) -> Duration {
        let start = Instant::now();
        let mut last = String::new();
        while start.elapsed() < patience {
            last = self.text(selector);
            if test(&last) {
                return start.elapsed();
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        panic!("{selector} shows after {patience:?}: {last}");
    }

    /// Writes a picture of the whole page.
    pub(crate) fn shot(&mut self, path: &Path) {
        self.order(&json!({ "shot": path }));
    }

    /// Errors in the console, and requests to others, since the last call.
    pub(crate) fn errors(&mut self) -> Vec<String> {
        let errors = self.order(&json!({ "errors": true }));
        serde_json::from_value(errors).expect("a list of texts")
    }

    fn order(&mut self, order: &Value) -> Value {
        let orders = self.orders.as_mut().expect("open until dropped");
        writeln!(orders, "{order}").expect("the browser's program runs");
        let mut line = String::new();
        self.answers.read_line(&mut line).expect("an answer");
        let mut answer: Value = serde_json::from_str(&line).expect("an answer in JSON");
        assert!(answer["error"].is_null(), "{order}: {}", answer["error"]);
        answer["value"].take()
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        drop(self.orders.take());
        if std::thread::panicking() {
            let _ = self.child.kill();
        } else {
            let ended = || self.child.try_wait().expect("a child");
            wait_for("the browser's end", Duration::from_secs(15), ended);
        }
    }
}
