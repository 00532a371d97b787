//! Generates the bindings from FreeBSD's kernel headers, and the sizes and
//! offsets that a C compiler gives for the same headers.
//!
//! `QPASS_SYSDIR` names the headers: a `sys` source folder (FreeBSD's
//! `/usr/src/sys`), or a folder with `arch` and `generic` in it, as
//! `scripts/setup.sh` unpacks them. Default: `/usr/src/sys` on FreeBSD, else
//! `.deps/freebsd-14`. `QPASS_CLANG` names the compiler, `LIBCLANG_PATH` the
//! library of it; both are looked for where Debian and FreeBSD's ports put them.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

/// What bindgen may emit, one pattern a line and nothing else; types that
/// these mention come along.
const FUNCTIONS: &[&str] = &[
    "__mtx_(un)?lock_flags",
    "_mtx_(init|destroy)",
    "_sleep",
    "wakeup",
    "pause_sbt",
    "malloc",
    "free",
    "uma_z(create|destroy)",
    "uma_z(alloc|free)_arg",
    "copyin",
    "copyout",
    "vm_fault_quick_hold_pages",
    "vm_page_unhold_pages",
    "vm_page_(tryxbusy|xunbusy_hard|is_valid|dirty_KBI)",
    "make_dev_(s|physpath_alias)",
    "devstat_(new_entry|remove_entry|start_transaction|end_transaction)",
    "binuptime",
    "getbinuptime",
    "xpt_getattr",
    "destroy_dev_(sched_cb|drain)",
    "devfs_(set|get)_cdevpriv",
    "knlist_(add|remove|init_mtx|destroy)",
    "knote",
    "selrecord",
    "selwakeuppri",
    "seldrain",
    "taskqueue_(enqueue|drain)",
    "periphdriver_(un)?register",
    "cam_periph_(alloc|acquire|find|doacquire|release|release_locked_buses|invalidate)",
    "cam_(periph|compat)_ioctl",
    "cam_periph_(async|error|runccb|getccb|mapmem|unmapmem)",
    "cam_release_devq",
    "xpt_(freeze|release)_devq",
    "xpt_(un)?lock_buses",
    "xpt_path_(mtx|sim)",
    "_timeout_task_init",
    "taskqueue_(enqueue_timeout_sbt|drain_timeout)",
    "xpt_(freeze|release)_devq",
    "xpt_(create|free)_path",
    "xpt_(register_async|action)",
    "xpt_(alloc|free|release|merge)_ccb",
    "xpt_setup_ccb(_flags)?",
    "securelevel_gt",
    "sig_intr",
    "priv_check",
    "sysctl_(ctx_init|ctx_free|add_oid|handle_64)",
    "eventratecheck",
    "printf",
    "panic",
];
const TYPES: &[&str] = &[
    "ccb(_.*)?",
    "ccb_hdr_0x1[78]",
    "cam_(periph|path|status|flags|periph_map_info)",
    "cam_status",
    "cam_sim",
    "cam_(ed|devq|ccbq)",
    "camq",
    "ccb_flags",
    "pi_miscflag",
    "periph_driver",
    "periph_(init|deinit|start|ctor|oninv|dtor)_t",
    "ac_(callback_t|code|contract)",
    "timeval",
    "async_(list|node)",
    "xpt_opcode",
    "cdev(sw)?",
    "make_dev_args",
    "selinfo",
    "knlist",
    "knote",
    "kevent",
    "filterops",
    "bio",
    "vmspace",
    "vm_map",
    "bus_dma_segment_t",
    "task",
    "timeout_task",
    "mtx",
    "moduledata(_t)?",
    "mod_(metadata|version|depend)",
    "modeventtype",
    "sysinit",
    "sysctl_(oid|req|oid_list|ctx_list)",
    "mmc_(data|command|request)",
    "pcpu",
    "malloc_type",
    "thread",
    "proc",
    "sysentvec",
    "uma_zone_t",
    "scsi_(sense_data|sense_data_fixed|inquiry_data|command_.*)",
    "scsi_(test_unit_ready|inquiry|read_capacity.*|rw_.*|generic)",
    "qpass_(constants|info|limit|cancel|enter|submission|completion|list|outstanding)",
    "pollfd",
    "timespec",
    "rusage",
    "devstat_.*",
];
/// Types of which only the address matters here.
const OPAQUE: &[&str] = &["vm_page", "vm_map", "vmspace", "pmap"];
const VARIABLES: &[&str] = &[
    "taskqueue_thread",
    "physmem",
    "unmapped_buf",
    "panicstr",
    "BIO_(READ|WRITE|UNMAPPED)",
    "PAGE_SIZE",
    "periph_drivers",
    "maxphys",
    "CAM_.*",
    "CDAI_.*",
    "RELSIM_.*",
    "MSG_(SIMPLE_Q_TAG|HEAD_OF_Q_TAG|ORDERED_Q_TAG|ACA_TASK)",
    "ATA_FLAG_.*",
    "ATA_PROTO_.*",
    "C_CATCH",
    "CTS_TYPE_.*",
    "XPT_FC_.*",
    "AC_.*",
    "SF_.*",
    "RELSIM_.*",
    "SCSI_STATUS_.*",
    "SSD_.*",
    "PIM_.*",
    "PI_.*",
    "DFLTPHYS",
    "DEVSTAT_.*",
    "MAXPATHLEN",
    "E[A-Z0-9]+",
    "D_TRACKCLOSE",
    "EVFILT_.*",
    "EV_.*",
    "POLL.*",
    "KNF_.*",
    "MAKEDEV_.*",
    "M_(NOWAIT|WAITOK|ZERO)",
    "MTX_.*",
    "FREAD",
    "FWRITE",
    "O_.*",
    "SV_ILP32",
    "PRIBIO",
    "PCATCH",
    "C_ABSOLUTE",
    "PDROP",
    "UID_ROOT",
    "IOCDBLEN",
    "DEV_IDLEN",
    "IOC_.*",
    "QPC_.*",
    "QPASS_.*",
    "SYS_(execve|getrusage|pread|__sysctlbyname|fork|mlock|fstat|close_range|exit|read|write|open|close|ioctl|fork|wait4|mmap|munmap|poll|kqueue|kevent|kldload|kldunload|clock_gettime|nanosleep|reboot|kenv|dup|getpid|sync|mprotect|kldstat|kldfind)",
    "MDT_.*",
    "SSD_.*",
    "PROTO_.*",
    "CTLTYPE.*",
    "CTLFLAG_(RD|MPSAFE)",
    "OID_AUTO",
    "PRIV_(KMEM_WRITE|DRIVER)",
    "MMC_DATA_.*",
    "MAP_.*",
    "PROT_.*",
    "RB_.*",
    "KENV_GET",
    "UMA_.*",
    "T_(DIRECT|SEQUENTIAL|ENCLOSURE)",
    "MSG_SIMPLE_Q_TAG",
];

fn main() {
    let manifest = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").unwrap());
    let out = PathBuf::from(env::var_os("OUT_DIR").unwrap());
    println!("cargo::rerun-if-env-changed=QPASS_SYSDIR");
    println!("cargo::rerun-if-env-changed=QPASS_CLANG");
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=wrapper.h");
    println!("cargo::rerun-if-changed=layout.c");
    println!("cargo::rerun-if-changed=../kmod/qpass_ioctl.h");

    find_libclang();
    let headers = Headers::locate(&manifest, &out);
    let cflags = headers.cflags();
    // The qpass crate compiles kmod/shim.c with the same flags.
    // Between them what cargo has between its own: a path may have blanks.
    println!("cargo::metadata=cflags={}", cflags.join("\x1f"));
    println!("cargo::metadata=clang={}", clang());
    println!("cargo::rustc-env=QPASS_OSVERSION={}", headers.osversion);

    let mut builder = bindgen::Builder::default()
        .header(manifest.join("wrapper.h").to_str().unwrap())
        .clang_args(&cflags)
        .use_core()
        .ctypes_prefix("::core::ffi")
        .prepend_enum_name(false)
        .default_enum_style(bindgen::EnumVariation::Consts)
        .derive_default(false)
        .derive_debug(false)
        .layout_tests(true)
        .generate_comments(false)
        .merge_extern_blocks(true)
        .rust_edition(bindgen::RustEdition::Edition2024)
        .size_t_is_usize(true);
    for t in OPAQUE {
        builder = builder.opaque_type(t);
    }
    for f in FUNCTIONS {
        builder = builder.allowlist_function(f);
    }
    for t in TYPES {
        builder = builder.allowlist_type(t);
    }
    for v in VARIABLES {
        builder = builder.allowlist_var(v);
    }
    builder
        .generate()
        .expect("bindgen could not read the kernel headers")
        .write_to_file(out.join("bindings.rs"))
        .expect("cannot write bindings.rs");

    write_layout(&manifest, &cflags, &out);
}

/// Where the kernel headers are and how a C compiler is told to use them.
struct Headers {
    include: Vec<PathBuf>,
    osversion: u32,
}

impl Headers {
    fn locate(manifest: &Path, out: &Path) -> Self {
        let default = if cfg!(target_os = "freebsd") {
            PathBuf::from("/usr/src/sys")
        } else {
            manifest.join("../.deps/freebsd-14")
        };
        let dir = env::var_os("QPASS_SYSDIR").map_or(default, PathBuf::from);
        println!("cargo::rerun-if-changed={}", dir.display());
        if dir.join("generic/cam").is_dir() {
            let version = dir.join("osversion");
            let osversion = fs::read_to_string(&version)
                .unwrap_or_else(|e| panic!("{}: {e}", version.display()))
                .trim()
                .parse()
                .expect("osversion is a number");
            return Headers {
                include: vec![dir.join("opt"), dir.join("arch"), dir.join("generic")],
                osversion,
            };
        }
        if dir.join("cam").is_dir() {
            return Headers::source_tree(&dir, out);
        }
        panic!(
            "no FreeBSD kernel headers in {}: run scripts/setup.sh, or set QPASS_SYSDIR",
            dir.display()
        );
    }

    /// FreeBSD's own `sys` folder: `machine` and `x86` are links that a kernel
    /// build makes, and the option headers may be empty.
    fn source_tree(dir: &Path, out: &Path) -> Self {
        let links = out.join("include");
        let _ = fs::remove_dir_all(&links);
        fs::create_dir_all(&links).unwrap();
        for (link, to) in [("machine", "amd64/include"), ("x86", "x86/include")] {
            std::os::unix::fs::symlink(dir.join(to), links.join(link)).unwrap();
        }
        for opt in OPTION_HEADERS {
            fs::write(links.join(opt), "").unwrap();
        }
        let param = fs::read_to_string(dir.join("sys/param.h")).unwrap();
        let osversion = param
            .lines()
            .find_map(|l| l.strip_prefix("#define __FreeBSD_version "))
            .and_then(|l| l.split_whitespace().next()?.parse().ok())
            .expect("sys/param.h gives __FreeBSD_version");
        Headers {
            include: vec![links, dir.to_path_buf()],
            osversion,
        }
    }

    fn cflags(&self) -> Vec<String> {
        let release = self.osversion / 100_000;
        let mut flags: Vec<String> = [
            "-std=gnu99",
            "-D_KERNEL",
            "-DKLD_MODULE",
            "-ffreestanding",
            "-mcmodel=kernel",
            "-mno-red-zone",
            "-mno-sse",
            "-mno-mmx",
            "-msoft-float",
            "-nostdinc",
            "-Wno-everything",
        ]
        .map(String::from)
        .to_vec();
        flags.push(format!("--target=x86_64-unknown-freebsd{release}"));
        // A source tree's param.h defines it itself; the same value is no clash.
        flags.push(format!("-D__FreeBSD_version={}", self.osversion));
        for dir in &self.include {
            flags.push(format!("-isystem{}", dir.display()));
        }
        flags
    }
}

/// Headers that config(8) generates; empty means "no option set".
const OPTION_HEADERS: &[&str] = &[
    "opt_cam.h",
    "opt_ddb.h",
    "opt_global.h",
    "opt_hwpmc_hooks.h",
    "opt_kstack_pages.h",
    "opt_platform.h",
    "opt_sched.h",
    "opt_vm.h",
    "bus_if.h",
    "device_if.h",
];

/// The compiler: the newest that the scripts know, or the system's own.
fn clang() -> String {
    let runs = |name: &&str| Command::new(name).arg("--version").output().is_ok();
    env::var("QPASS_CLANG").unwrap_or_else(|_| {
        let found = ["clang-19", "clang"].into_iter().find(runs);
        found.unwrap_or("clang").into()
    })
}

/// Tells bindgen where libclang is, if nobody else does.
fn find_libclang() {
    println!("cargo::rerun-if-env-changed=LIBCLANG_PATH");
    if env::var_os("LIBCLANG_PATH").is_some() {
        return;
    }
    let mut found = vec![PathBuf::from("/usr/lib/llvm-19/lib")];
    if let Ok(local) = fs::read_dir("/usr/local") {
        let mut ports: Vec<_> = local
            .flatten()
            .filter(|entry| entry.file_name().to_string_lossy().starts_with("llvm"))
            .map(|entry| entry.path().join("lib"))
            .collect();
        ports.sort();
        found.extend(ports.into_iter().rev());
    }
    if let Some(dir) = found.into_iter().find(|dir| dir.is_dir()) {
        // SAFETY: a build script has one thread here.
        unsafe { env::set_var("LIBCLANG_PATH", dir) };
    }
}

/// Compiles `layout.c` to assembly and turns its marks into Rust assertions.
fn write_layout(manifest: &Path, cflags: &[String], out: &Path) {
    let clang = clang();
    let asm = out.join("layout.s");
    let status = Command::new(&clang)
        .args(cflags)
        .arg("-S")
        .arg("-o")
        .arg(&asm)
        .arg(manifest.join("layout.c"))
        .status()
        .unwrap_or_else(|e| panic!("cannot run {clang}: {e}"));
    assert!(status.success(), "{clang} could not compile layout.c");
    let mut rust = String::new();
    let mut facts = 0;
    for line in fs::read_to_string(&asm).unwrap().lines() {
        let Some(mark) = line
            .trim()
            .strip_prefix(".ascii")
            .and_then(|text| text.trim().strip_prefix("\"->")?.strip_suffix('"'))
        else {
            continue;
        };
        let words: Vec<&str> = mark.split_whitespace().collect();
        match words[..] {
            ["size", "uma_align", size] => {
                rust.push_str(&format!(
                    "const_assert_eq!(size_of::<core::ffi::c_int>(), {size});\n"
                ));
            }
            ["size", ty, size] => {
                rust.push_str(&format!("const_assert_eq!(size_of::<{ty}>(), {size});\n"));
            }
            ["offset", ty, field, at] => rust.push_str(&format!(
                "const_assert_eq!(core::mem::offset_of!({ty}, {field}), {at});\n"
            )),
            _ => panic!("layout.c: unknown mark {line}"),
        }
        facts += 1;
    }
    assert!(facts > 60, "layout.c gave only {facts} facts");
    fs::write(out.join("layout.rs"), rust).unwrap();
}
