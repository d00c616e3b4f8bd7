//! How the guest is entered, and how it ends when it fails.
//!
//! There are two ways, each told by a note in the ELF file. A machine that knows the note of
//! "Diskferry" enters `guest_start` on every vCPU: 64-bit, ring 3, IOPL 3, all memory mapped one to one, RDI the
//! address of the `hvm_start_info`, RSI the number of the vCPU, RDX how many there are. Any other
//! that knows PVH (QEMU) enters `pvh_start` on one: 32-bit, ring 0, no paging, EBX that address. The stub there
//! does what is left to do and goes on at `guest_start`. Nothing after it needs ring 0.

use core::arch::global_asm;
use core::panic::PanicInfo;

use crate::json::Line;
use crate::vcpu::MOST;

/// Bytes of the stack of one vCPU, as a power of two.
const STACK_SHIFT: usize = 16;

/// The code that a failed assertion ends the machine with.
const PANICKED: u8 = 101;

// The notes: the length of the name with its zero, that of the value, the type.
global_asm!(
    r#"
    .pushsection .note.pvh, "a", @note
    .balign 4
    .long 4, 8, 18
    .asciz "Xen"
    .quad pvh_start
    .popsection

    .pushsection .note.diskferry, "a", @note
    .balign 4
    .long 10, 4, 1
    .asciz "Diskferry"
    .balign 4
    .long 1
    .popsection
    "#,
    options(att_syntax)
);

// The entry of every vCPU: a stack for its number, and the same three arguments on.
global_asm!(
    r#"
    .pushsection .text.guest_start, "ax", @progbits
    .globl guest_start
guest_start:
    cmpq ${most}, %rsi
    jae 1f
    leaq 1(%rsi), %rax
    shlq ${shift}, %rax
    leaq stacks(%rip), %rsp
    addq %rax, %rsp
    xorl %ebp, %ebp
    cld
    call guest_main
1:  ud2
    .popsection

    .pushsection .bss.stacks, "aw", @nobits
    .balign 4096
stacks:
    .skip {most} << {shift}
    .popsection
    "#,
    most = const MOST,
    shift = const STACK_SHIFT,
    options(att_syntax)
);

// PVH: page tables of 1 GiB pages for 512 GiB, or of 2 MiB pages for 64 GiB where the processor has
// no larger ones; SSE on, for compiled code uses it; long mode; ring 3. The task's map allows all
// ports too, for there are hypervisors that lose IOPL on the way to ring 3.
global_asm!(
    r#"
    .pushsection .text.pvh_start, "ax", @progbits
    .code32
pvh_start:
    cld
    movl $pvh_stack_end, %esp
    movl %ebx, %edi
    movl $0x80000001, %eax
    cpuid
    xorl %ecx, %ecx
    testl $1 << 26, %edx
    jz 2f

1:  movl %ecx, %eax
    shll $30, %eax
    orl $0x87, %eax
    movl %eax, pvh_directories(, %ecx, 8)
    movl %ecx, %eax
    shrl $2, %eax
    movl %eax, pvh_directories + 4(, %ecx, 8)
    incl %ecx
    cmpl $512, %ecx
    jne 1b
    jmp 4f

2:  movl %ecx, %eax
    shll $21, %eax
    orl $0x87, %eax
    movl %eax, pvh_tables(, %ecx, 8)
    movl %ecx, %eax
    shrl $11, %eax
    movl %eax, pvh_tables + 4(, %ecx, 8)
    incl %ecx
    cmpl $64 * 512, %ecx
    jne 2b
    xorl %ecx, %ecx
3:  movl %ecx, %eax
    shll $12, %eax
    addl $pvh_tables + 7, %eax
    movl %eax, pvh_directories(, %ecx, 8)
    incl %ecx
    cmpl $64, %ecx
    jne 3b

4:  movl $pvh_directories + 7, pvh_root
    movl $pvh_root, %eax
    movl %eax, %cr3
    movl %cr4, %eax
    orl $0x620, %eax                /* PAE, OSFXSR, OSXMMEXCPT */
    movl %eax, %cr4
    movl $0xc0000080, %ecx          /* EFER: LME */
    rdmsr
    orl $0x100, %eax
    wrmsr
    movl $0x80000033, %eax          /* PG, NE, ET, MP, PE */
    movl %eax, %cr0

    movl $pvh_stack_end, pvh_tss + 4
    movw $104, pvh_tss + 102        /* the map of ports: every bit clear, then a closing byte */
    movb $0xff, pvh_tss + 104 + 8192
    movl $pvh_tss, %eax             /* the task's base, into its descriptor */
    movw %ax, pvh_gdt + 0x2a
    shrl $16, %eax
    movb %al, pvh_gdt + 0x2c
    movb %ah, pvh_gdt + 0x2f
    lgdtl pvh_gdt_pointer
    ljmpl $8, $pvh_long

    .code64
pvh_long:
    movw $0x28, %ax
    ltr %ax
    movl $0x23, %eax
    movw %ax, %ds
    movw %ax, %es
    movl %edi, %edi
    xorl %esi, %esi
    movl $1, %edx
    pushq $0x23
    pushq $0
    pushq $0x3002                   /* IOPL 3, no interrupts */
    pushq $0x1b
    pushq $guest_start
    iretq
    .popsection

    .pushsection .data.pvh, "aw", @progbits
    .balign 16
pvh_gdt:
    .quad 0
    .quad 0x00af9b000000ffff        /* 08: ring 0, code */
    .quad 0x00cf93000000ffff        /* 10: ring 0, data */
    .quad 0x00affb000000ffff        /* 18: ring 3, code */
    .quad 0x00cff3000000ffff        /* 20: ring 3, data */
    .quad 0x0000890000002068, 0     /* 28: the task, with its map of ports */
pvh_gdt_pointer:
    .word 55
    .long pvh_gdt
    .popsection

    .pushsection .bss.pvh, "aw", @nobits
    .balign 4096
pvh_root:
    .skip 4096
pvh_directories:
    .skip 4096
pvh_tables:
    .skip 64 * 4096
pvh_tss:
    .skip 3 * 4096
    .skip 4096
pvh_stack_end:
    .popsection
    "#,
    options(att_syntax)
);

/// Where `guest_start` goes on.
#[unsafe(no_mangle)]
extern "C" fn guest_main(start_info: u64, index: u64, count: u64) -> ! {
    crate::run(start_info, index, count)
}

unsafe extern "C" {
    /// Where the stacks begin.
    static stacks: u8;
}

/// Says what failed and ends the machine. It waits for no lock, for this vCPU may hold it.
#[panic_handler]
fn panic(info: &PanicInfo) -> ! {
    let here = &raw const info as u64;
    let vcpu = (here - &raw const stacks as u64) >> STACK_SHIFT;
    let mut line = Line::new("panic", vcpu as u32);
    if let Some(place) = info.location() {
        let at = u64::from(place.line());
        line = line.text("file", place.file()).number("line", at);
    }
    super::serial::send_at_once(line.text("said", info.message()).finish());
    super::exit(PANICKED)
}
