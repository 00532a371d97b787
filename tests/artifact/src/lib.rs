//! The artifact check: what kldload(8) and the kernel's own rules want of a
//! relocatable module, looked for in the file itself.

use iced_x86::{
    Code, Decoder, DecoderOptions, FlowControl, Instruction, InstructionInfoFactory, Mnemonic,
    OpAccess, OpKind, Register,
};
use object::{
    Object, ObjectKind, ObjectSection, ObjectSymbol, RelocationFlags, SectionKind, SymbolKind, elf,
};

/// Relocations that sys/amd64/amd64/elf_machdep.c takes for a module.
const TAKEN: &[(u32, &str)] = &[
    (elf::R_X86_64_64, "R_X86_64_64"),
    (elf::R_X86_64_PC32, "R_X86_64_PC32"),
    (elf::R_X86_64_PLT32, "R_X86_64_PLT32"),
    (elf::R_X86_64_32, "R_X86_64_32"),
    (elf::R_X86_64_32S, "R_X86_64_32S"),
];

/// The linker sets that make a module: without one of them kldload(8) finds
/// nothing to load.
const SETS: &[&str] = &["set_modmetadata_set", "set_sysinit_set"];

/// Looks at a module; every line is something that is wrong with it.
///
/// `exports` are the names that it may import.
///
/// # Errors
/// The file cannot be read as ELF.
pub fn check(file: &[u8], exports: &[&str]) -> Result<Vec<String>, object::Error> {
    let elf = object::File::parse(file)?;
    let mut wrong = Vec::new();
    if elf.kind() != ObjectKind::Relocatable {
        wrong.push("is not ET_REL".into());
    }
    for name in SETS {
        if elf.section_by_name(name).is_none() {
            wrong.push(format!("has no {name}"));
        }
    }
    for section in elf.sections() {
        for (offset, relocation) in section.relocations() {
            let RelocationFlags::Elf { r_type } = relocation.flags() else {
                continue;
            };
            if !TAKEN.iter().any(|(t, _)| *t == r_type) {
                let name = section.name().unwrap_or("?");
                wrong.push(format!("{name}+{offset:#x}: relocation type {r_type}"));
            }
        }
    }
    for symbol in elf.symbols().filter(|s| s.is_undefined() && !s.is_weak()) {
        let name = symbol.name().unwrap_or_default();
        if !name.is_empty() && !exports.contains(&name) {
            wrong.push(format!("imports {name}, which the kernel does not export"));
        }
    }
    for symbol in elf.symbols().filter(|s| s.kind() == SymbolKind::Text) {
        let Some(code) = function(&elf, &symbol) else {
            continue;
        };
        for what in check_code(&code) {
            wrong.push(format!("{}: {what}", symbol.name().unwrap_or("?")));
        }
    }
    Ok(wrong)
}

fn function(elf: &object::File<'_>, symbol: &object::Symbol<'_, '_>) -> Option<Vec<Instruction>> {
    let section = elf.section_by_index(symbol.section_index()?).ok()?;
    if section.kind() != SectionKind::Text || symbol.size() == 0 {
        return None;
    }
    let start = symbol.address() as usize;
    let code = section
        .data()
        .ok()?
        .get(start..start + symbol.size() as usize)?;
    Some(
        Decoder::with_ip(64, code, 0, DecoderOptions::NONE)
            .iter()
            .collect(),
    )
}

/// What no kernel code may do: floating-point state is the process's, and an
/// interrupt writes below the stack pointer.
fn check_code(code: &[Instruction]) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut info = InstructionInfoFactory::new();
    let reach = stack_reach(code);
    for instruction in code {
        if instruction.code() == Code::INVALID {
            wrong.push(format!("+{:#x}: not an instruction", instruction.ip()));
            continue;
        }
        let foreign = |r: Register| r.is_vector_register() || r.is_st() || r.is_mm() || r.is_k();
        let info = info.info(instruction);
        if info.used_registers().iter().any(|r| foreign(r.register())) {
            wrong.push(format!(
                "+{:#x}: {instruction}: SSE or x87",
                instruction.ip()
            ));
        }
        let touches = info
            .used_memory()
            .iter()
            .any(|m| !matches!(m.access(), OpAccess::None | OpAccess::NoMemAccess));
        if touches && below_the_stack(instruction, reach) {
            wrong.push(format!("+{:#x}: {instruction}: red zone", instruction.ip()));
        }
    }
    wrong
}

/// How far below the frame pointer the function's own stack goes, if it has a
/// frame pointer: pushes and the subtraction after `mov rbp, rsp`.
fn stack_reach(code: &[Instruction]) -> Option<u64> {
    let mut frame = false;
    let mut reach = 0;
    for instruction in code {
        match instruction.mnemonic() {
            Mnemonic::Mov
                if instruction.op0_register() == Register::RBP
                    && instruction.op1_register() == Register::RSP =>
            {
                frame = true;
            }
            Mnemonic::Push if frame => reach += 8,
            Mnemonic::Sub if frame && instruction.op0_register() == Register::RSP => {
                // An unknown amount is a variable frame: nothing to say.
                if instruction.op1_kind() == OpKind::Register {
                    return None;
                }
                reach += instruction.immediate(1);
            }
            // The prologue is over with the first branch; a later subtraction
            // belongs to a call.
            _ if frame && instruction.flow_control() != FlowControl::Next => break,
            _ => {}
        }
    }
    frame.then_some(reach)
}

fn below_the_stack(instruction: &Instruction, reach: Option<u64>) -> bool {
    let offset = instruction.memory_displacement64() as i64;
    match instruction.memory_base() {
        // push and call have no memory operand of their own.
        Register::RSP => offset < 0 && instruction.memory_index() == Register::None,
        Register::RBP => reach.is_some_and(|reach| offset < -(reach as i64)),
        _ => false,
    }
}
