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

use args::{Cli, Command};
use clap::{CommandFactory, Parser};
use fail::{Code, Fail};
use qpass_client::{Device, Kernel, own_nodes};
use show::Watch;
use std::{
    process::ExitCode,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

/// Somebody wants it to end: SIGINT, SIGTERM, SIGHUP.
static STOP: AtomicBool = AtomicBool::new(false);

/// Whether it was told to end.
pub fn stopped() -> bool {
    STOP.load(Ordering::SeqCst)
}

/// Opens a device by its node's name, or by another driver's name for it.
pub fn open(kernel: &Arc<dyn Kernel>, name: &str) -> Result<Device, Fail> {
    let short = name.strip_prefix("/dev/").unwrap_or(name);
    let is_node = |driver: &str| {
        let unit = short.strip_prefix(driver);
        unit.is_some_and(|unit| unit.parse::<u32>().is_ok())
    };
    if name.is_empty() || is_node("qpass") || is_node("pass") || name.contains('/') {
        return Ok(Device::open(
            kernel,
            if name.is_empty() { "?" } else { name },
        )?);
    }
    let mut refused = None;
    for node in own_nodes(kernel)? {
        match Device::open(kernel, &node) {
            Ok(device) => {
                if device.peripherals()?.iter().any(|p| p == short) {
                    return Ok(device);
                }
            }
            Err(error) => refused = Some(error),
        }
    }
    match refused {
        // It may be that one.
        Some(error) => Err(error.into()),
        None => Err(Fail::new(
            Code::System,
            format!("{name}: no device of qpass(4) has that name; see qpassctl list"),
        )),
    }
}

fn run(cli: Cli) -> Result<(), Fail> {
    if let Command::Completions { shell } = cli.command {
        let mut text = Vec::new();
        clap_complete::generate(shell, &mut Cli::command(), "qpassctl", &mut text);
        return output::bytes(&text);
    }
    let _ = ctrlc::set_handler(|| STOP.store(true, Ordering::SeqCst));
    let kernel = qpass_client::kernel().map_err(|e| Fail::new(Code::System, e))?;
    let (kernel, json) = (&kernel, cli.json);
    match cli.command {
        Command::List => show::list(kernel, json),
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
        Command::Cancel(args) => show::cancel(&open(kernel, &args.device)?, &args, json),
        Command::Stats { devices, watch } => {
            show::stats(kernel, &devices, &Watch { args: watch, json })
        }
        Command::Limits { set } => show::limits(kernel, &set, json),
        Command::Completions { .. } => Ok(()),
    }
}

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let code = error.exit_code();
            let _ = error.print();
            return ExitCode::from(code as u8);
        }
    };
    match run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(fail) => {
            if !fail.message.is_empty() {
                eprintln!("qpassctl: {fail}");
            }
            ExitCode::from(fail.code as u8)
        }
    }
}
