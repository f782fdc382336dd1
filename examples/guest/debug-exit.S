// SPDX-License-Identifier: Apache-2.0
//
// debug-exit STATUS: ends the machine from inside.  Waits until standard output's serial line has sent
// everything, then writes STATUS (0 to 255) to the debug-exit port, 0xf4, upon which the VMM ends with it.
//
// Debian's kernels have no /dev/port, so the program asks for the port by ioperm(2).  No libc: 1 KiB
// instead of 800 in an initramfs that a software CPU unpacks.
//
//     gcc -static -nostdlib -o debug-exit debug-exit.S

        .set    port, 0xf4
        .set    sys_ioctl, 16
        .set    sys_exit, 60
        .set    sys_ioperm, 173
        .set    tcsbrk, 0x5409

        .globl  _start
        .text
_start:
        cmpl    $2, (%rsp)              // argc
        jne     usage
        mov     16(%rsp), %rsi          // argv[1]
        xor     %ebx, %ebx
digit:
        movzbl  (%rsi), %eax
        test    %eax, %eax
        jz      parsed
        sub     $'0', %eax
        cmp     $9, %eax
        ja      usage
        imul    $10, %ebx, %ebx
        add     %eax, %ebx
        inc     %rsi
        jmp     digit
parsed:
        mov     $sys_ioctl, %eax        // tcdrain(1)
        mov     $1, %edi
        mov     $tcsbrk, %esi
        mov     $1, %edx
        syscall
        mov     $sys_ioperm, %eax
        mov     $port, %edi
        mov     $1, %esi
        mov     $1, %edx
        syscall
        test    %eax, %eax
        jnz     failed
        mov     %ebx, %eax
        outb    %al, $port
failed:                                 // No such device: the caller powers off.
        mov     $1, %edi
        mov     $sys_exit, %eax
        syscall
usage:
        mov     $2, %edi
        mov     $sys_exit, %eax
        syscall

        .section .note.GNU-stack, "", @progbits
