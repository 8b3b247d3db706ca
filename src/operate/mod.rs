//! An operator's commands for a running natsmux, through its control socket.

mod answer;
mod ask;

use std::io::{self, Write};
use std::path::Path;

use serde_json::{Value, json};

use crate::cli::{Command, ControlArgs};
use crate::status::escape_controls;
use answer::{in_words, is_whole};
pub(crate) use ask::CommandError;

/// A command as it is written to the control socket.
#[derive(Debug)]
pub(crate) struct Request {
    path: &'static str,
    body: Value,
}

/// Returns the request that is a command, and the socket that it goes to; `None` for a command that
/// isn't for a running natsmux.
pub(crate) fn request(command: Command) -> Option<(Request, ControlArgs)> {
    let (path, body, control) = match command {
        Command::Move(args) => {
            let body = json!({ "bus": args.bus, "to": args.to, "within": args.within });
            ("/move", body, args.control)
        }
        Command::Drain(args) => {
            let body = json!({ "broker": args.broker, "bus": args.bus, "within": args.within });
            ("/drain", body, args.control)
        }
        Command::Undrain(args) => {
            let body = json!({ "broker": args.broker, "bus": args.bus });
            ("/undrain", body, args.control)
        }
        Command::Pause(args) => {
            let body = json!({ "bus": args.bus, "for": args.r#for });
            ("/pause", body, args.control)
        }
        Command::Resume(args) => ("/resume", json!({ "bus": args.bus }), args.control),
        Command::Sessions(args) => ("/sessions", json!({ "bus": args.bus }), args.control),
        Command::Kill(args) => ("/kill", json!({ "cid": args.cid }), args.control),
        Command::Reload(args) => ("/reload", json!({}), args.control),
        Command::Run(_) | Command::Check(_) | Command::Status(_) | Command::Top(_) => return None,
    };
    Some((Request { path, body }, control))
}

/// Has a running natsmux carry a command out, and prints what came of it. Returns whether that was
/// all of it.
///
/// # Errors
/// [`CommandError`], where it is refused, or nothing answers.
pub(crate) fn operate(socket: &Path, request: &Request, json: bool) -> Result<bool, CommandError> {
    let answer = ask::ask(socket, request)?;
    let text = if json {
        escape_controls(&format!("{answer:#}\n"))
    } else {
        in_words(request.path, &answer)
    };
    // A reader that went away (`| head`) has seen what it wanted.
    let _ = io::stdout().write_all(text.as_bytes());
    Ok(is_whole(&answer))
}
