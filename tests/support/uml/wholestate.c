/* Preloaded into linux.uml: lets guests run on processors with more state than it knows of.
 *
 * It saves 2,696 bytes of a process's registers, which were all when it was written, and sets as many. Linux
 * takes the whole state or none (EFAULT), and with AMX's tiles that is 11,008 bytes. What is behind those
 * that it knows is left here as it is; a guest has no tiles. Static, for it calls from stacks of 16 KiB. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <elf.h>
#include <errno.h>
#include <stdarg.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/uio.h>

long ptrace(enum __ptrace_request request, ...)
{
    static long (*real)(enum __ptrace_request, ...);
    static char whole[1 << 16];
    struct iovec all = {whole, sizeof whole};
    va_list words;

    va_start(words, request);
    long pid = va_arg(words, long);
    void *at = va_arg(words, void *), *data = va_arg(words, void *);
    va_end(words);
    if (!real)
        real = dlsym(RTLD_NEXT, "ptrace");
    long done = real(request, pid, at, data);
    if (done == 0 || errno != EFAULT || request != PTRACE_SETREGSET || at != (void *)NT_X86_XSTATE)
        return done;
    struct iovec *known = data;
    if (real(PTRACE_GETREGSET, pid, at, &all) || known->iov_len > all.iov_len)
        return -1;
    memcpy(whole, known->iov_base, known->iov_len);
    return real(request, pid, at, &all);
}
