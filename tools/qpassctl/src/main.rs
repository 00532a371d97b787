//! qpassctl(8).

mod answer;
mod args;
mod bench;
mod copy;
mod disk;
mod fail;
mod output;
mod raw;
mod show;
mod signals;
mod stream;

pub use signals::stopped;

use args::{Cli, Command};
use clap::{CommandFactory, Parser, error::ErrorKind};
use fail::{Code, Fail};
use qpass_client::{Device, Kernel, own_nodes};
use show::Watch;
use std::{process::ExitCode, sync::Arc};

/// Opens a device by its node's name, or by another driver's name for it; with
/// `/dev/` before it or without.
pub fn open(kernel: &Arc<dyn Kernel>, name: &str) -> Result<Device, Fail> {
    if name.is_empty() {
        return Err(Fail::usage("an empty name is no device's"));
    }
    let short = name.strip_prefix("/dev/").unwrap_or(name);
    let is_node = |driver: &str| {
        let unit = short.strip_prefix(driver);
        unit.is_some_and(|unit| unit.parse::<u32>().is_ok())
    };
    // What has a folder in it is an alias by physical path, or nothing.
    if is_node("qpass") || is_node("pass") || short.contains('/') {
        return Ok(Device::open(kernel, name)?);
    }
    let mut refused = None;
    let mut known = Vec::new();
    for node in own_nodes(kernel)? {
        match Device::open(kernel, &node) {
            Ok(device) => {
                let peripherals = device.peripherals()?;
                if peripherals.iter().any(|p| p == short) {
                    return Ok(device);
                }
                known.extend(peripherals);
            }
            Err(error) => refused = Some(error),
        }
    }
    // It may be that one.
    if let Some(error) = refused {
        return Err(error.into());
    }
    let part_of = known
        .iter()
        .find(|disk| short.starts_with(disk.as_str()) && short.len() > disk.len())
        .filter(|disk| short[disk.len()..].starts_with(['p', 's']));
    let hint = match part_of {
        Some(disk) => format!("a partition is no device; its disk is {disk}"),
        None if args::duration(short).is_ok() => {
            "a time goes with its option, as in --watch=2".into()
        }
        None => "see qpassctl list".into(),
    };
    Err(Fail::new(
        Code::System,
        format!("{name}: no device of qpass(4) has that name; {hint}"),
    ))
}

fn run(cli: Cli) -> Result<(), Fail> {
    if let Command::Completions { shell } = cli.command {
        let mut text = Vec::new();
        clap_complete::generate(shell, &mut Cli::command(), "qpassctl", &mut text);
        return output::bytes(&text);
    }
    signals::catch();
    let kernel = qpass_client::kernel().map_err(|e| Fail::new(Code::System, e))?;
    let (kernel, json) = (&kernel, cli.json);
    match cli.command {
        Command::List { devices } => show::list(kernel, &devices, json),
        Command::Inquiry { device, page } => show::inquiry(&open(kernel, &device)?, page, json),
        Command::Tur { device } => show::tur(&open(kernel, &device)?, json),
        Command::Readcap { device } => show::readcap(open(kernel, &device)?, json),
        Command::Cdb(args) => raw::cdb(&open(kernel, &args.device)?, &args, json),
        Command::Read(args) => copy::read(open(kernel, &args.device)?, &args, json),
        Command::Write(args) => copy::write(open(kernel, &args.device)?, &args, json),
        Command::Bench(args) => bench::bench(kernel, &args, json),
        Command::Outstanding { devices, watch } => {
            show::outstanding(kernel, &devices, &Watch { args: watch, json })
        }
        Command::Cancel(args) if !args.all && args.open.is_none() => Err(Fail::usage(
            "cancel: which requests: --open N, with or without --request N, as qpassctl \
             outstanding shows them, or --all",
        )),
        Command::Cancel(args) => show::cancel(&open(kernel, &args.device)?, &args, json),
        Command::Stats { devices, watch } => {
            show::stats(kernel, &devices, &Watch { args: watch, json })
        }
        Command::Limits { set } => show::limits(kernel, &set, json),
        Command::Completions { .. } => Ok(()),
    }
}

/// What clap has against the arguments, in one line.
fn complaint(error: &clap::Error) -> String {
    if matches!(
        error.kind(),
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand | ErrorKind::MissingSubcommand
    ) {
        let command = Cli::command();
        let names: Vec<_> = command
            .get_subcommands()
            .map(clap::Command::get_name)
            .collect();
        return format!("a command is wanted: {}; see --help", names.join(", "));
    }
    let text = error.render().to_string();
    let text = text.strip_prefix("error: ").unwrap_or(&text);
    let end = ["\nUsage:", "\nFor more information"]
        .iter()
        .filter_map(|mark| text.find(mark))
        .min()
        .unwrap_or(text.len());
    let mut line = String::new();
    for piece in text[..end].lines().map(str::trim).filter(|p| !p.is_empty()) {
        let tip = piece.strip_prefix("tip: ").unwrap_or(piece);
        let between = match () {
            () if line.is_empty() => "",
            () if tip.len() != piece.len() => "; ",
            () => " ",
        };
        line.push_str(between);
        line.push_str(tip);
    }
    line
}

fn main() -> ExitCode {
    let (result, json) = match Cli::try_parse() {
        Ok(cli) => {
            let json = cli.json;
            (run(cli), json)
        }
        Err(error) if error.exit_code() == 0 => (output::text(&error.render().to_string()), false),
        Err(error) => {
            let json = std::env::args_os().any(|arg| arg == "--json");
            (Err(Fail::usage(complaint(&error))), json)
        }
    };
    let Err(fail) = result else {
        return ExitCode::SUCCESS;
    };
    if !fail.message.is_empty() {
        eprintln!("qpassctl: {fail}");
        if json {
            output::failure(&fail);
        }
    }
    if fail.code == Code::Interrupted {
        signals::end_by_it();
    }
    ExitCode::from(fail.code as u8)
}
