//! How the guest is entered, and how it ends when it fails.
//!
//! There are two ways, each told by a note in the ELF file. A machine that knows the note of
//! "Diskferry" enters `guest_start` on every vCPU: 64-bit, ring 3, IOPL 3, all memory mapped one to one, RDI the
//! address of the `hvm_start_info`, RSI the number of the vCPU, RDX how many there are. Any other
//! that knows PVH (QEMU) enters `pvh_start` on one: 32-bit, ring 0, no paging, EBX that address. What is
//! there does what is left to do, wakes the others and goes on at `guest_start`. Nothing after it needs
//! ring 0.

use core::arch::global_asm;
use core::panic::PanicInfo;

use crate::json::Line;
use crate::vcpu::MOST;

/// Bytes of the stack of one vCPU, as a power of two.
const STACK_SHIFT: usize = 16;

/// The page of the first MiB where other vCPUs of a PVH machine begin.
const WAKE_PAGE: usize = 0x8000;

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

// PVH, once: page tables of 1 GiB pages for 512 GiB, or of 2 MiB pages for 64 GiB where the processor
// has no larger ones, and the task's descriptor. The task's map allows all ports, for there are
// hypervisors that lose IOPL on the way to ring 3.
global_asm!(
    r#"
    .pushsection .text.pvh_start, "ax", @progbits
    .code32
pvh_start:
    cld
    movl %ebx, pvh_info
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
    movw $104, pvh_tss + 102        /* where the map of ports begins; a byte of ones closes it */
    movb $0xff, pvh_tss + 104 + 8192
    movl $pvh_tss, %eax
    movw %ax, pvh_gdt + 0x2a
    shrl $16, %eax
    movb %al, pvh_gdt + 0x2c
    movb %ah, pvh_gdt + 0x2f
    lgdtl pvh_gdt_pointer
    jmp pvh_enter
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
    .quad 0x00cf9b000000ffff        /* 38: ring 0, code of 32 bits */
pvh_gdt_pointer:
    .word 63
    .long pvh_gdt
pvh_count:
    .long 1
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
pvh_info:
    .skip 4
pvh_next:
    .skip 4
pvh_busy:
    .skip 4
    .popsection
    "#,
    options(att_syntax)
);

// PVH, on each vCPU: SSE on, for compiled code uses it; long mode; a number; ring 3. The task is shared, so
// its descriptor is made free again before each vCPU takes it.
global_asm!(
    r#"
    .pushsection .text.pvh_enter, "ax", @progbits
    .code32
pvh_enter:
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
    ljmpl $8, $pvh_long

    .code64
pvh_long:
    movl $1, %esi
    lock xaddl %esi, pvh_next
    leal 1(%rsi), %eax
    shll ${shift}, %eax
    addl $stacks, %eax
    movl %eax, %esp
1:  pause
    lock btsl $0, pvh_busy
    jc 1b
    andb $0xfd, pvh_gdt + 0x2d
    movw $0x28, %ax
    ltr %ax
    movl $0, pvh_busy
    testl %esi, %esi
    jnz 2f
    call pvh_wake_others
2:  movl $0x23, %eax
    movw %ax, %ds
    movw %ax, %es
    movl pvh_info, %edi
    movl pvh_count, %edx
    pushq $0x23
    pushq $0
    pushq $0x3002                   /* IOPL 3, no interrupts */
    pushq $0x1b
    pushq $guest_start
    iretq
    .popsection
    "#,
    shift = const STACK_SHIFT,
    options(att_syntax)
);

// The other vCPUs of QEMU, whose firmware configuration says how many there are: each is sent to a page of
// the first MiB, in real mode, and from there to `pvh_enter`. Other machines have one.
global_asm!(
    r#"
    .pushsection .text.pvh_wake, "ax", @progbits
    .code64
pvh_wake_others:
    xorl %eax, %eax                 /* item 0 is "QEMU" */
    movw $0x510, %dx
    outw %ax, %dx
    incl %edx
    movl $4, %ecx
1:  inb %dx, %al
    rorl $8, %eax
    decl %ecx
    jnz 1b
    cmpl $0x554d4551, %eax
    jne 2f
    movl $5, %eax                   /* item 5 is how many */
    decl %edx
    outw %ax, %dx
    incl %edx
    xorl %eax, %eax
    inb %dx, %al
    cmpl $2, %eax
    jb 2f
    movl %eax, pvh_count
    movl $pvh_wakeup, %esi
    movl ${page}, %edi
    movl $pvh_wakeup_end - pvh_wakeup, %ecx
    rep movsb
    movl $0xfee00300, %ebx          /* to all others: INIT, then twice where to start */
    movl $0xc4500, (%rbx)
    call pvh_wait
    movl $0xc4600 + {page} / 4096, (%rbx)
    call pvh_wait
    movl $0xc4600 + {page} / 4096, (%rbx)
    xorl %esi, %esi
2:  ret

pvh_wait:
    rdtsc
    movl %eax, %ecx
1:  pause
    rdtsc
    subl %ecx, %eax
    cmpl $1 << 24, %eax             /* some milliseconds */
    jb 1b
    ret

    .code16
pvh_wakeup:
    cli
    xorw %ax, %ax
    movw %ax, %ds
    lgdtl {page} + pvh_wakeup_gdt - pvh_wakeup
    movl %cr0, %eax
    orl $1, %eax
    movl %eax, %cr0
    ljmpl $0x38, $pvh_wakened
pvh_wakeup_gdt:
    .word 63
    .long pvh_gdt
pvh_wakeup_end:

    .code32
pvh_wakened:
    movl $0x10, %eax
    movw %ax, %ds
    movw %ax, %es
    movw %ax, %ss
    jmp pvh_enter
    .code64
    .popsection
    "#,
    page = const WAKE_PAGE,
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
