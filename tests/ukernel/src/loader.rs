//! kldload(2) and kldunload(2): the relocatable file is laid out in the low
//! 2 GiB, relocated, and its linker sets are run in the kernel's order.

use crate::{
    cam, count, devstat, exports, kqueue, memory, sys, sysctl, task,
    thread::{self, broken},
};
use object::{
    Object, ObjectSection, ObjectSymbol, RelocationFlags, RelocationTarget, SectionFlags,
    SectionKind, SymbolIndex, elf,
};
use std::{
    collections::HashMap,
    ffi::{CStr, c_int, c_void},
    sync::{
        Mutex,
        atomic::{AtomicPtr, AtomicUsize, Ordering},
    },
};

/// Bytes that a module and its thunks may take.
const ARENA: usize = 4 << 20;

/// A loaded module.
pub struct Module {
    arena: *mut u8,
    used: usize,
    /// Where each section went, by its index in the file.
    sections: HashMap<usize, (usize, u64)>,
    sysinits: Vec<*mut sys::sysinit>,
    sysuninits: Vec<*mut sys::sysinit>,
}

// SAFETY: its addresses are of the process, not of a thread.
unsafe impl Send for Module {}

/// The module data that the file's sysinit has registered.
static REGISTERED: AtomicPtr<sys::moduledata> = AtomicPtr::new(core::ptr::null_mut());
static LOAD_ERROR: Mutex<c_int> = Mutex::new(0);
/// Modules loaded so far.
pub static LOADS: AtomicUsize = AtomicUsize::new(0);

/// DECLARE_MODULE(9)'s sysinit.
unsafe extern "C" fn module_register_init(data: *const c_void) {
    let data = data.cast::<sys::moduledata>().cast_mut();
    REGISTERED.store(data, Ordering::SeqCst);
    let error = event(sys::MOD_LOAD);
    if error != 0 {
        event(sys::MOD_UNLOAD);
        REGISTERED.store(core::ptr::null_mut(), Ordering::SeqCst);
    }
    *LOAD_ERROR.lock().unwrap() = error;
}

/// Sends the module an event.
fn event(what: sys::modeventtype) -> c_int {
    let data = REGISTERED.load(Ordering::SeqCst);
    if data.is_null() {
        return 0;
    }
    // SAFETY: the loaded module's own handler.
    unsafe {
        let handler = (*data).evhand.expect("an event handler");
        let error = handler(core::ptr::null_mut(), what as c_int, (*data).priv_);
        crate::lock::may_sleep("return from a module event");
        error
    }
}

impl Module {
    /// Loads a file.
    ///
    /// # Errors
    /// Why the kernel would not: the file's form, a relocation, a symbol by
    /// name, a dependency, or the errno of MOD_LOAD.
    pub fn load(file: &[u8]) -> Result<Module, String> {
        let elf = object::File::parse(file).map_err(|e| format!("not an ELF file: {e}"))?;
        if elf.kind() != object::ObjectKind::Relocatable {
            return Err("not a relocatable file".into());
        }
        let mut module = Module {
            arena: low_memory()?,
            used: 0,
            sections: HashMap::new(),
            sysinits: Vec::new(),
            sysuninits: Vec::new(),
        };
        module.lay_out(&elf)?;
        let imports = module.resolve(&elf)?;
        module.relocate(&elf, &imports)?;
        module.check_metadata(&elf)?;
        let start = module.arena as usize;
        count::set_module(start..start + ARENA);
        sysctl::register(&module.set(&elf, "set_sysctl_set"));
        module.sysinits = module.sysinit_set(&elf, "set_sysinit_set", false);
        module.sysuninits = module.sysinit_set(&elf, "set_sysuninit_set", true);
        run(&module.sysinits);
        let error = std::mem::take(&mut *LOAD_ERROR.lock().unwrap());
        if error != 0 {
            module.release();
            return Err(format!("MOD_LOAD: errno {error}"));
        }
        LOADS.fetch_add(1, Ordering::SeqCst);
        Ok(module)
    }

    /// Unloads it, and checks that nothing of it is left.
    ///
    /// # Errors
    /// The errno of MOD_QUIESCE or MOD_UNLOAD, and the module, which stays.
    pub fn unload(self) -> Result<(), (c_int, Module)> {
        match event(sys::MOD_QUIESCE) {
            0 => self.unload_by_force(),
            error => Err((error, self)),
        }
    }

    /// kldunload -f: the module's word at MOD_QUIESCE does not count.
    ///
    /// # Errors
    /// The errno of MOD_UNLOAD, and the module, which stays.
    pub fn unload_by_force(mut self) -> Result<(), (c_int, Module)> {
        match event(sys::MOD_UNLOAD) {
            0 => {
                self.release();
                Ok(())
            }
            error => Err((error, self)),
        }
    }

    fn release(&mut self) {
        REGISTERED.store(core::ptr::null_mut(), Ordering::SeqCst);
        sysctl::unregister_all();
        run(&self.sysuninits);
        // The linker frees the file now, whoever is in it: whoever returns to it
        // faults. What is checked below may look at its data.
        // SAFETY: the arena is the module's own.
        unsafe { libc::mprotect(self.arena.cast(), ARENA, libc::PROT_READ) };
        task::drain();
        let selectors = kqueue::selectors();
        if selectors != 0 {
            broken(&format!(
                "{selectors} threads in poll(2) are recorded at unload"
            ));
        }
        let zones = memory::zones();
        if !zones.is_empty() {
            broken(&format!("zones are left at unload: {zones:?}"));
        }
        devstat::check_clean();
        crate::vm::check_clean();
        let start = self.arena as usize;
        cam::check_clean(start..start + ARENA);
        // Whoever still calls it faults.
        // SAFETY: the arena is the module's own.
        unsafe { libc::mprotect(self.arena.cast(), ARENA, libc::PROT_NONE) };
    }

    fn take(&mut self, len: usize, align: usize) -> Result<usize, String> {
        self.used = self.used.next_multiple_of(align.max(1));
        let at = self.used;
        self.used += len;
        if self.used > ARENA {
            return Err("the module is too large".into());
        }
        Ok(self.arena as usize + at)
    }

    fn lay_out(&mut self, elf: &object::File<'_>) -> Result<(), String> {
        for section in elf.sections() {
            let SectionFlags::Elf { sh_flags } = section.flags() else {
                continue;
            };
            if sh_flags & u64::from(elf::SHF_ALLOC) == 0 || section.size() == 0 {
                continue;
            }
            let at = self.take(section.size() as usize, section.align() as usize)?;
            let data = section.data().map_err(|e| e.to_string())?;
            if section.kind() != SectionKind::UninitializedData {
                // SAFETY: the arena has room, see take().
                unsafe { core::ptr::copy_nonoverlapping(data.as_ptr(), at as *mut u8, data.len()) };
            }
            self.sections
                .insert(section.index().0, (at, section.size()));
        }
        Ok(())
    }

    /// Gives every import an address in the arena: a jump to the function, or
    /// the variable itself.
    fn resolve(&mut self, elf: &object::File<'_>) -> Result<HashMap<String, usize>, String> {
        let functions: HashMap<_, _> = exports::functions().into_iter().collect();
        let variables: HashMap<_, _> = exports::VARIABLES.iter().copied().collect();
        let mut imports = HashMap::new();
        let mut missing = Vec::new();
        for symbol in elf.symbols().filter(|s| s.is_undefined()) {
            let name = symbol.name().unwrap_or_default();
            if name.is_empty() || symbol.is_weak() {
                continue;
            }
            let function = if name == exports::REGISTER_MODULE {
                Some(module_register_init as *const c_void)
            } else {
                functions.get(name).copied()
            };
            let at = if let Some(function) = function {
                self.thunk(function as usize)?
            } else if let Some(size) = variables.get(name) {
                self.take(*size, 16)?
            } else {
                missing.push(name.to_string());
                continue;
            };
            imports.insert(name.to_string(), at);
        }
        if !missing.is_empty() {
            missing.sort();
            return Err(format!("undefined symbols: {}", missing.join(", ")));
        }
        if let Some(at) = imports.get("periph_drivers") {
            cam::place_periph_drivers(*at);
        }
        if let Some(at) = imports.get("panicstr") {
            PANICSTR.store(*at, Ordering::SeqCst);
        }
        if let Some(at) = imports.get("physmem") {
            // SAFETY: the variable's place in the arena, see take().
            unsafe { (*at as *mut u64).write(memory::physmem()) };
        }
        Ok(imports)
    }

    /// `jmp *0(%rip)` and the address: the process's own code is out of reach
    /// of a 32-bit displacement.
    fn thunk(&mut self, to: usize) -> Result<usize, String> {
        let at = self.take(16, 16)?;
        let mut code = vec![0xff, 0x25, 0, 0, 0, 0];
        code.extend(to.to_le_bytes());
        // SAFETY: the arena has room, see take().
        unsafe { core::ptr::copy_nonoverlapping(code.as_ptr(), at as *mut u8, code.len()) };
        Ok(at)
    }

    fn symbol(
        &self,
        elf: &object::File<'_>,
        imports: &HashMap<String, usize>,
        index: SymbolIndex,
    ) -> Result<usize, String> {
        let symbol = elf.symbol_by_index(index).map_err(|e| e.to_string())?;
        let name = symbol.name().unwrap_or_default();
        if let Some(section) = symbol.section_index() {
            let (base, _) = self
                .sections
                .get(&section.0)
                .ok_or_else(|| format!("{name}: in a section that is not loaded"))?;
            return Ok(base + symbol.address() as usize);
        }
        imports
            .get(name)
            .copied()
            .ok_or_else(|| format!("undefined symbol {name}"))
    }

    fn relocate(
        &self,
        elf: &object::File<'_>,
        imports: &HashMap<String, usize>,
    ) -> Result<(), String> {
        for section in elf.sections() {
            let Some((base, _)) = self.sections.get(&section.index().0) else {
                continue;
            };
            for (offset, relocation) in section.relocations() {
                let place = base + offset as usize;
                let RelocationTarget::Symbol(index) = relocation.target() else {
                    return Err("a relocation without a symbol".into());
                };
                let symbol = self.symbol(elf, imports, index)?;
                let value = (symbol as i64).wrapping_add(relocation.addend());
                let RelocationFlags::Elf { r_type } = relocation.flags() else {
                    return Err("not an ELF relocation".into());
                };
                let narrow = |v: i64| {
                    i32::try_from(v).map_err(|_| format!("relocation at {place:#x} out of reach"))
                };
                // SAFETY: the place is in a section that was laid out.
                unsafe {
                    match r_type {
                        elf::R_X86_64_64 => (place as *mut i64).write_unaligned(value),
                        elf::R_X86_64_32 | elf::R_X86_64_32S => {
                            (place as *mut i32).write_unaligned(narrow(value)?);
                        }
                        elf::R_X86_64_PC32 | elf::R_X86_64_PLT32 => {
                            (place as *mut i32).write_unaligned(narrow(value - place as i64)?);
                        }
                        other => return Err(format!("relocation type {other} is not taken")),
                    }
                }
            }
        }
        Ok(())
    }

    /// The pointers in a linker set.
    fn set(&self, elf: &object::File<'_>, name: &str) -> Vec<usize> {
        let Some(section) = elf.section_by_name(name) else {
            return Vec::new();
        };
        let Some((at, len)) = self.sections.get(&section.index().0) else {
            return Vec::new();
        };
        (0..*len as usize / size_of::<usize>())
            // SAFETY: the section is loaded and relocated.
            .map(|i| unsafe { *(*at as *const usize).add(i) })
            .collect()
    }

    fn sysinit_set(
        &self,
        elf: &object::File<'_>,
        name: &str,
        backwards: bool,
    ) -> Vec<*mut sys::sysinit> {
        let mut all: Vec<_> = self
            .set(elf, name)
            .into_iter()
            .map(|p| p as *mut sys::sysinit)
            .collect();
        // SAFETY: the set holds pointers to struct sysinit.
        all.sort_by_key(|s| unsafe { ((**s).subsystem, (**s).order) });
        if backwards {
            all.reverse();
        }
        all
    }

    /// MODULE_DEPEND and MODULE_VERSION: kernel and cam are here, in version 1.
    fn check_metadata(&self, elf: &object::File<'_>) -> Result<(), String> {
        let mut names = Vec::new();
        for entry in self.set(elf, "set_modmetadata_set") {
            // SAFETY: the set holds pointers to struct mod_metadata, and its
            // fields to what md_type says.
            unsafe {
                let entry = &*(entry as *const sys::mod_metadata);
                let name = CStr::from_ptr(entry.md_cval).to_string_lossy().into_owned();
                if entry.md_type == sys::MDT_DEPEND as c_int {
                    let depend = &*entry.md_data.cast::<sys::mod_depend>();
                    let have = match name.as_str() {
                        "cam" => 1,
                        "kernel" => sys::OSVERSION.parse().unwrap_or(0),
                        other => return Err(format!("depends on {other}, which is not here")),
                    };
                    if have < depend.md_ver_minimum || have > depend.md_ver_maximum {
                        return Err(format!("depends on another version of {name}"));
                    }
                }
                names.push((entry.md_type as u32, name));
            }
        }
        for wanted in [
            (sys::MDT_MODULE, "qpass"),
            (sys::MDT_VERSION, "qpass"),
            (sys::MDT_DEPEND, "cam"),
            (sys::MDT_DEPEND, "kernel"),
        ] {
            if !names.iter().any(|(t, n)| (*t, n.as_str()) == wanted) {
                return Err(format!("module metadata lacks {wanted:?}"));
            }
        }
        Ok(())
    }
}

fn run(sysinits: &[*mut sys::sysinit]) {
    for sysinit in sysinits {
        // SAFETY: the module's own functions, in the kernel's order.
        unsafe {
            let func = (**sysinit).func.expect("a function");
            func((**sysinit).udata);
        }
    }
}

/// Memory below 2 GiB that can be written and run.
fn low_memory() -> Result<*mut u8, String> {
    // SAFETY: fresh memory.
    let at = unsafe {
        libc::mmap(
            core::ptr::null_mut(),
            ARENA,
            libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_32BIT,
            -1,
            0,
        )
    };
    if at == libc::MAP_FAILED {
        return Err(format!(
            "no memory below 2 GiB: {}",
            std::io::Error::last_os_error()
        ));
    }
    // The thread that loads is a kernel thread from here on.
    let _ = thread::current();
    Ok(at.cast())
}

/// Where the last module that was loaded finds `panicstr`.
static PANICSTR: AtomicUsize = AtomicUsize::new(0);

/// The kernel has panicked, as the module sees it: kern_shutdown.c, vpanic(), sets
/// the pointer, stops the other CPUs and dumps, with xpt_sim_poll() completing what
/// is under way.
pub fn panic() {
    let at = PANICSTR.load(Ordering::SeqCst) as *mut *const u8;
    assert!(!at.is_null(), "a module that looks at panicstr");
    // SAFETY: the variable's place in the arena, see take().
    unsafe { at.write_volatile(c"test".as_ptr().cast()) };
}
