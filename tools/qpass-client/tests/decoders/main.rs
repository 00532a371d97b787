//! Decoders against noise: what devices have answered, bent, cut and mixed, and bytes
//! at random, the same in every run of the same length.
//!
//! `cargo test` tries some hundred thousand inputs; `scripts/fuzz` a hundred million.
//! `QPASS_FUZZ` says how many, `QPASS_FUZZ_SEED` where the noise begins: an input that
//! breaks something is printed.

use qpass_client::{
    Sense,
    decode::{
        ata::{self, Identify},
        capacity::{Capacity, Zones},
        inquiry::{Page, Standard},
        nvme::{self, Controller, Format},
        opcode, text,
    },
};
use std::{
    hint::black_box,
    panic::{AssertUnwindSafe, catch_unwind},
    process::ExitCode,
    sync::atomic::{AtomicU64, Ordering},
};

/// Marsaglia's xorshift, of 64 bits.
struct Noise(u64);

impl Noise {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, end: usize) -> usize {
        (self.next() >> 16) as usize % end.max(1)
    }

    fn byte(&mut self) -> u8 {
        (self.next() >> 24) as u8
    }
}

fn hex(text: &str) -> Vec<u8> {
    let byte = |b| u8::from_str_radix(b, 16).expect("hex");
    text.split_whitespace().map(byte).collect()
}

/// What devices have answered.
fn seeds() -> Vec<Vec<u8>> {
    let mut all: Vec<_> = [
        "f0 00 05 00 00 12 34 0a 00 00 00 00 21 00",
        "72 05 21 00 00 00 00 0c 00 0a 80 00 00 00 00 00 00 00 12 34",
        "72 01 00 1d 00 00 00 0e 09 0c 00 00 00 00 00 00 00 f4 00 2c 00 50",
        "f0 00 01 00 50 00 01 0a 80 00 00 00 00 1d",
        "70 00 05 00 00 00 00 0a 04 51 40 01 21 04",
        "70 00 02 00 00 00 00 0a 00 00 00 00 04 04 00 80 d4 a9",
        "72 00 00 16 00 00 00 08 02 06 00 00 80 40 00 00",
        "70 00 05 00 00 00 00 0a 00 00 00 00 26 00 00 8f 00 12",
        "72 00 00 00 00 00 00 10 00 0a 80 00 ff ff ff ff ff ff f0 00 04 02 00 20",
        "72 03 11 00 00 00 00 20 0d 1e a0 00 c0 00 09 07 00 00 00 01 00 00 00 05 \
         00 00 00 00 00 00 00 02 00 00 00 00",
        "73 0b 44 00 80 00 00 0c 0a 06 02 04 04 00 40 00 03 02 00 05",
        "00 80 00 08 53 45 52 49 41 4c 30 31",
        "00 83 00 40 02 01 00 04 41 42",
        "00 00 00 03 00 80 83",
        "00 00 05 02 1f 00 00 02 41 54 41 20 20 20 20 20 4f 43 5a 2d 41 47 49 4c 49 54 59 33 \
         20 20 20 20 32 2e 35 30",
        "90 83 ff ff 00 00 10 00",
        "00 00 00 05 74 ff ff ff 00 00 02 00 03 03 80 00",
        "9e 10 00 00 00 00 00 00 00 00 00 00 00 20 00 00",
        "7f 00 00 00 00 00 00 18 00 09",
    ]
    .map(hex)
    .to_vec();
    // IDENTIFY DEVICE and Identify Namespace.
    let mut identify = vec![0; 512];
    for (word, value) in [
        (60, 2048u16),
        (83, 0x7400),
        (87, 0x4000),
        (106, 0x7003),
        (117, 2048),
    ] {
        identify[word * 2..word * 2 + 2].copy_from_slice(&value.to_le_bytes());
    }
    let mut namespace = vec![0; 4096];
    (namespace[0], namespace[25], namespace[26], namespace[130]) = (9, 40, 0x41, 9);
    all.extend([identify, namespace]);
    all
}

/// The next input: a seed that is bent, two that are joined, or noise.
fn input(noise: &mut Noise, seeds: &[Vec<u8>]) -> Vec<u8> {
    let mut data = match noise.below(8) {
        0 => {
            let len = noise.below(80);
            (0..len).map(|_| noise.byte()).collect()
        }
        1 => {
            let (a, b) = (
                &seeds[noise.below(seeds.len())],
                &seeds[noise.below(seeds.len())],
            );
            let (m, n) = (noise.below(a.len() + 1), noise.below(b.len() + 1));
            [&a[..m], &b[n..]].concat()
        }
        _ => seeds[noise.below(seeds.len())].clone(),
    };
    for _ in 0..noise.below(5) {
        if data.is_empty() {
            break;
        }
        // What says how much there is, and of which kind, is near the beginning.
        let end = if noise.below(4) == 0 {
            data.len()
        } else {
            data.len().min(24)
        };
        let at = noise.below(end);
        data[at] = match noise.below(4) {
            0 => data[at] ^ 1 << noise.below(8),
            1 => [0, 0xff, 0x7f, 0x80][noise.below(4)],
            2 => data.len() as u8,
            _ => noise.byte(),
        };
    }
    if noise.below(3) == 0 {
        data.truncate(noise.below(data.len() + 1));
    }
    data
}

/// All decoders that such bytes may come to, and what has to hold of them.
fn exercise(data: &[u8], noise: &mut Noise) {
    if let Some(sense) = Sense::parse(data) {
        let given = data.get(7).map_or(data.len(), |n| 8 + usize::from(*n));
        let given = given.min(data.len());
        assert_eq!(sense.raw(), &data[..given], "raw is what was given");
        // What is behind the additional length, or never came, makes no difference.
        let mut other = data.to_vec();
        other[given..].iter_mut().for_each(|b| *b = !*b);
        assert_eq!(Sense::parse(&other).as_ref(), Some(&sense));
        assert!(!(sense.deferred && sense.is_success()));
        let body: usize = sense.descriptors.iter().map(|d| d.body.len() + 2).sum();
        assert!(body <= given);
        let words = sense.to_string();
        assert!(words.bytes().all(|b| (b' '..=b'~').contains(&b)), "{words}");
        black_box((sense.residual(), sense.progress(), sense.is_power_on()));
    }
    if let Ok(standard) = Standard::parse(data) {
        assert!(standard.came <= data.len() && standard.came <= standard.length);
        let texts = [&standard.vendor, &standard.product, &standard.revision];
        assert!(
            texts
                .iter()
                .all(|t| t.len() <= 16 && t.trim() == t.as_str())
        );
        black_box((standard.version_name(), standard.absence()));
    }
    let page = data.get(1).copied().unwrap_or(0) ^ u8::from(noise.below(4) == 0);
    let standard = &data[..noise.below(data.len() + 1)];
    if let Ok(page) = Page::parse(data, page, standard) {
        assert!(page.raw.len() <= data.len() && page.raw.len() <= page.length);
        assert_eq!(page.body.len() + 4, page.raw.len());
        let shown = text(page.body);
        assert!(shown.bytes().all(|b| (b' '..=b'~').contains(&b)));
    }
    if let Ok(Some(capacity)) = Capacity::of_10(data) {
        assert!(capacity.blocks <= u64::from(u32::MAX));
    }
    if let Ok(capacity) = Capacity::of_16(data) {
        black_box(capacity.physical());
    }
    let _ = black_box(Zones::parse(data));
    if let Some(identify) = Identify::parse(data) {
        assert!(identify.blocks < 1 << 48);
    }
    if let Ok(format) = Format::parse(data) {
        assert!(format.index < 64);
    }
    let _ = black_box(Controller::parse(data));
    let word = data
        .get(..2)
        .map_or(0, |b| u16::from_le_bytes([b[0], b[1]]));
    black_box(nvme::Status::parse(word).to_string());
    let first = data.first().copied().unwrap_or(0);
    black_box((ata::command_name(first), nvme::command_name(first, true)));
    black_box(opcode::scsi(data, noise.byte() & 0x1f));
    black_box(opcode::request(noise.byte().into(), data, 0));
}

fn number(name: &str, otherwise: u64) -> u64 {
    let value = std::env::var(name).ok();
    value.and_then(|n| n.parse().ok()).unwrap_or(otherwise)
}

fn main() -> ExitCode {
    // As a test it may be asked for its list, or for others by name.
    if std::env::args().any(|a| a == "--list") {
        return ExitCode::SUCCESS;
    }
    let count = number("QPASS_FUZZ", 300_000);
    let seed = number("QPASS_FUZZ_SEED", 1);
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get() as u64);
    let done = AtomicU64::new(0);
    let seeds = seeds();
    std::panic::set_hook(Box::new(|_| ()));
    let broken = std::thread::scope(|scope| {
        let run = |thread: u64| {
            let mut noise =
                Noise((seed * threads + thread).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
            for _ in 0..count.div_ceil(threads) {
                let data = input(&mut noise, &seeds);
                let tried = catch_unwind(AssertUnwindSafe(|| exercise(&data, &mut noise)));
                if let Err(why) = tried {
                    let words = why.downcast_ref::<String>().cloned();
                    let short = why.downcast_ref::<&str>().map(|s| (*s).to_owned());
                    return Some((data, words.or(short).unwrap_or_default()));
                }
                let n = done.fetch_add(1, Ordering::Relaxed) + 1;
                if n.is_multiple_of(10_000_000) {
                    println!("{n} inputs");
                }
            }
            None
        };
        let all: Vec<_> = (0..threads).map(|n| scope.spawn(move || run(n))).collect();
        all.into_iter()
            .find_map(|thread| thread.join().expect("it is caught"))
    });
    if let Some((data, why)) = broken {
        eprintln!("{why}\nwith {data:02x?}");
        return ExitCode::FAILURE;
    }
    println!("{} inputs, nothing broke", done.into_inner());
    ExitCode::SUCCESS
}
