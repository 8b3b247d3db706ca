//! natsmux, the program: the life of the process.

mod cli;
mod operate;
mod status;

use std::env;
use std::ffi::OsString;
use std::fmt::Display;
use std::io::{self, Write};
use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

use cli::{CheckArgs, Command, HttpTlsArgs, Refusal, RunArgs};
use status::{FetchError, Target};

/// The daemon ended with an error, or isn't well.
const FAILED: u8 = 1;
/// The command line or the file is wrong.
const WRONG_INPUT: u8 = 2;

fn main() -> ExitCode {
    let args: Vec<OsString> = env::args_os().collect();
    match cli::parse(&args) {
        Ok(cli) => match cli.command {
            Command::Run(args) => run(*args),
            Command::Check(args) => check(args),
            Command::Status(args) => look(args.http, &args.tls, |natsmux| {
                status::status(natsmux, args.json)
            }),
            Command::Top(args) => look(args.http, &args.tls, |natsmux| {
                status::top(natsmux, Duration::from_secs(args.every), args.rounds)
            }),
            command => operate(command),
        },
        Err(refusal) => show(&refusal),
    }
}

fn run(args: RunArgs) -> ExitCode {
    if cfg!(feature = "turmoil") {
        return fail(
            FAILED,
            &"built for a simulated network: build without `turmoil`",
        );
    }
    let (config, file) = match args.into_config() {
        Ok(configured) => configured,
        Err(error) => return fail(WRONG_INPUT, &error),
    };
    match natsmux::daemon::run(config, file) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(FAILED, &error),
    }
}

fn check(args: CheckArgs) -> ExitCode {
    match args.into_config() {
        Ok(config) => {
            let files = match natsmux::daemon::read_files(&config) {
                Ok(files) => files,
                Err(error) => return fail(WRONG_INPUT, &error),
            };
            if let Some(exposed) = natsmux::daemon::exposed_listener(&config) {
                return fail(WRONG_INPUT, &exposed);
            }
            // A reader that went away (`| head`) has seen what it wanted.
            let _ = write!(io::stdout(), "{}{}", config.describe(), files.describe());
            ExitCode::SUCCESS
        }
        Err(error) => fail(WRONG_INPUT, &error),
    }
}

/// A look at a running natsmux: 0 while every bus has a live broker.
fn look(
    addr: SocketAddr,
    tls: &HttpTlsArgs,
    show: impl FnOnce(&Target) -> Result<bool, FetchError>,
) -> ExitCode {
    let tls = match tls.load() {
        Ok(tls) => tls,
        Err(error) => return fail(WRONG_INPUT, &error),
    };
    match show(&Target { addr, tls }) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(FAILED),
        Err(error) => fail(FAILED, &error),
    }
}

/// A command for a running natsmux: 0 once it is carried out as a whole.
fn operate(command: Command) -> ExitCode {
    let Some((request, control)) = operate::request(command) else {
        return ExitCode::from(WRONG_INPUT);
    };
    let json = control.json;
    let socket = match control.into_socket() {
        Ok(socket) => socket,
        Err(error) => return fail(WRONG_INPUT, &error),
    };
    match operate::operate(&socket, &request, json) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(FAILED),
        Err(error) if error.is_wrong_input() => fail(WRONG_INPUT, &error),
        Err(error) => fail(FAILED, &error),
    }
}

fn show(refusal: &Refusal) -> ExitCode {
    if refusal.is_fault {
        let _ = write!(io::stderr(), "{}", refusal.text);
        return ExitCode::from(WRONG_INPUT);
    }
    let _ = write!(io::stdout(), "{}", refusal.text);
    ExitCode::SUCCESS
}

fn fail(code: u8, error: &dyn Display) -> ExitCode {
    let _ = writeln!(io::stderr(), "natsmux: {error}");
    ExitCode::from(code)
}
