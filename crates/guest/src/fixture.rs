//! Small kernels, modules and programs for tests, made field by field.

fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    bytes[at..at + value.len()].copy_from_slice(value);
}

/// A bzImage of four sectors of setup and 1 KiB of payload.
pub(crate) fn bzimage(release: &str) -> Vec<u8> {
    let mut bytes = vec![0; 5 * 512 + 1024];
    bytes[0x1f1] = 4;
    put(&mut bytes, 0x1f4, &64_u32.to_le_bytes());
    put(&mut bytes, 0x1fe, &0xaa55_u16.to_le_bytes());
    put(&mut bytes, 0x202, b"HdrS");
    put(&mut bytes, 0x206, &0x020f_u16.to_le_bytes());
    put(&mut bytes, 0x20e, &0x300_u16.to_le_bytes());
    bytes[0x211] = 1;
    put(&mut bytes, 0x236, &1_u16.to_le_bytes());
    put(&mut bytes, 0x248, &0x10_u32.to_le_bytes());
    put(&mut bytes, 0x24c, &0x100_u32.to_le_bytes());
    put(
        &mut bytes,
        0x500,
        format!("{release} (builder) #1 SMP\0").as_bytes(),
    );
    bytes
}

fn header(kind: u16, machine: u16) -> Vec<u8> {
    let mut bytes = vec![0; 64];
    put(&mut bytes, 0, b"\x7fELF\x02\x01\x01");
    put(&mut bytes, 16, &kind.to_le_bytes());
    put(&mut bytes, 18, &machine.to_le_bytes());
    put(&mut bytes, 32, &64_u64.to_le_bytes());
    put(&mut bytes, 54, &56_u16.to_le_bytes());
    put(&mut bytes, 58, &64_u16.to_le_bytes());
    bytes
}

fn segment(kind: u32, offset: usize, address: u64, size: usize) -> Vec<u8> {
    let mut bytes = vec![0; 56];
    put(&mut bytes, 0, &kind.to_le_bytes());
    put(&mut bytes, 8, &(offset as u64).to_le_bytes());
    put(&mut bytes, 16, &address.to_le_bytes());
    put(&mut bytes, 32, &(size as u64).to_le_bytes());
    bytes
}

/// An ELF file with these segments, each with its bytes: (kind, address, bytes).
fn elf_file(kind: u16, machine: u16, segments: &[(u32, u64, &[u8])]) -> Vec<u8> {
    let mut bytes = header(kind, machine);
    put(
        &mut bytes,
        56,
        &u16::try_from(segments.len()).unwrap().to_le_bytes(),
    );
    let mut offset = 64 + 56 * segments.len();
    for (kind, address, data) in segments {
        bytes.extend(segment(*kind, offset, *address, data.len()));
        offset += data.len();
    }
    segments
        .iter()
        .for_each(|(_, _, data)| bytes.extend_from_slice(data));
    bytes
}

/// An ELF kernel.
pub(crate) fn vmlinux(release: &str, pvh: bool) -> Vec<u8> {
    let mut note = Vec::new();
    for word in [4_u32, 8, if pvh { 18 } else { 1 }] {
        note.extend(word.to_le_bytes());
    }
    note.extend(b"Xen\0");
    note.extend(0x100_0000_u64.to_le_bytes());
    let banner = format!("Linux version %s\0Linux version {release} (builder) #1 SMP\n\0");
    let text = 0xffff_ffff_8100_0000;
    elf_file(2, 62, &[(4, 0, &note), (1, text, banner.as_bytes())])
}

/// A program that may pass for the agent; `interpreter` makes it a dynamic one.
pub(crate) fn program(machine: u16, interpreter: bool) -> Vec<u8> {
    let load = (1, 0x40_0000, b"code".as_slice());
    if interpreter {
        elf_file(
            2,
            machine,
            &[load, (3, 0, b"/lib64/ld-linux-x86-64.so.2\0")],
        )
    } else {
        elf_file(2, machine, &[load])
    }
}

/// A module with a `.modinfo` section.
pub(crate) fn module(
    name: &str,
    release: &str,
    depends: &[&str],
    softdep: Option<&str>,
) -> Vec<u8> {
    let mut info = format!("license=GPL\0depends={}\0name={name}\0", depends.join(","));
    if let Some(softdep) = softdep {
        info.push_str(&format!("softdep={softdep}\0"));
    }
    info.push_str(&format!(
        "vermagic={release} SMP preempt mod_unload modversions \0"
    ));
    let names = b"\0.modinfo\0.shstrtab\0";
    let mut bytes = header(1, 62);
    let info_at = bytes.len();
    bytes.extend(info.as_bytes());
    let names_at = bytes.len();
    bytes.extend(names);
    let table_at = bytes.len();
    bytes.extend([0; 64]);
    for (name, offset, size) in [(1_u32, info_at, info.len()), (10, names_at, names.len())] {
        let mut section = [0; 64];
        put(&mut section, 0, &name.to_le_bytes());
        put(&mut section, 24, &(offset as u64).to_le_bytes());
        put(&mut section, 32, &(size as u64).to_le_bytes());
        bytes.extend(section);
    }
    put(&mut bytes, 32, &0_u64.to_le_bytes());
    put(&mut bytes, 40, &(table_at as u64).to_le_bytes());
    put(&mut bytes, 60, &3_u16.to_le_bytes());
    put(&mut bytes, 62, &2_u16.to_le_bytes());
    bytes
}
