/*
 * Records a process's operations on the files of one directory, in their order.
 *
 * cc -shared -fPIC -O1 -o shim.so shim.c -ldl -lpthread
 * LD_PRELOAD=./shim.so POWERLOSS_DIRECTORY=/absolute/path POWERLOSS_LOG=/elsewhere/log program
 *
 * Each record of the log: kind (1 byte), length of the name (2 bytes), length of the data (4 bytes), offset (8 bytes),
 * name, data. Numbers have the machine's byte order. Names are relative to the directory; "" is the directory itself.
 *
 *   'c' created         'w' data written at offset          't' truncated or extended to offset
 *   's' synced          'r' renamed, the new name as data   'u' unlinked
 *
 * A mutex is held during the call and the write of its record. Therefore the log's order is the order of the calls, and
 * a sync covers exactly the writes before it. Memory maps aren't recorded. SQLite uses one only for the WAL index, and
 * rebuilds that at the next start.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <unistd.h>

#undef open64
#undef openat64
#undef pwrite64
#undef ftruncate64

#define MAX_FILES 4096

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static char *names[MAX_FILES];
static char directory[PATH_MAX];
static int log_file = -1;

static ssize_t (*real_write)(int, const void *, size_t);
static ssize_t (*real_pwrite)(int, const void *, size_t, off_t);
static int (*real_open)(const char *, int, ...);
static int (*real_openat)(int, const char *, int, ...);
static int (*real_close)(int);
static int (*real_ftruncate)(int, off_t);
static int (*real_fsync)(int);
static int (*real_fdatasync)(int);
static int (*real_rename)(const char *, const char *);
static int (*real_unlink)(const char *);

static void fail(const char *what) {
    fprintf(stderr, "powerloss shim: %s: %s\n", what, strerror(errno));
    _exit(97);
}

__attribute__((constructor)) static void begin(void) {
    real_write = dlsym(RTLD_NEXT, "write");
    real_pwrite = dlsym(RTLD_NEXT, "pwrite64");
    real_open = dlsym(RTLD_NEXT, "open64");
    real_openat = dlsym(RTLD_NEXT, "openat64");
    real_close = dlsym(RTLD_NEXT, "close");
    real_ftruncate = dlsym(RTLD_NEXT, "ftruncate64");
    real_fsync = dlsym(RTLD_NEXT, "fsync");
    real_fdatasync = dlsym(RTLD_NEXT, "fdatasync");
    real_rename = dlsym(RTLD_NEXT, "rename");
    real_unlink = dlsym(RTLD_NEXT, "unlink");
    const char *of = getenv("POWERLOSS_DIRECTORY"), *to = getenv("POWERLOSS_LOG");
    if (of == NULL || to == NULL)
        return;
    if (realpath(of, directory) == NULL)
        fail(of);
    log_file = real_open(to, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    if (log_file < 0)
        fail(to);
}

/* Returns a path's name in the directory, or NULL if it is elsewhere; the caller frees the name. */
static char *name_of(const char *path) {
    char parent[PATH_MAX], real[PATH_MAX], whole[PATH_MAX + 256];
    if (log_file < 0 || strlen(path) >= PATH_MAX)
        return NULL;
    if (realpath(path, real) != NULL) {
        snprintf(whole, sizeof whole, "%s", real);
    } else { /* the file doesn't exist, but its directory may */
        strcpy(parent, path);
        char *slash = strrchr(parent, '/');
        const char *last = slash == NULL ? path : path + (slash - parent) + 1;
        if (slash != NULL)
            slash[slash == parent] = '\0';
        if (realpath(slash == NULL ? "." : parent, real) == NULL)
            return NULL;
        snprintf(whole, sizeof whole, "%s/%s", real, last);
    }
    size_t length = strlen(directory);
    if (strncmp(whole, directory, length) != 0)
        return NULL;
    if (whole[length] == '\0')
        return strdup("");
    return whole[length] == '/' ? strdup(whole + length + 1) : NULL;
}

static void put(const void *data, size_t length) {
    for (const char *at = data; length > 0;) {
        ssize_t written = real_write(log_file, at, length);
        if (written < 0 && errno == EINTR)
            continue;
        if (written < 0)
            fail("log");
        at += written;
        length -= (size_t)written;
    }
}

static void record(char kind, const char *name, uint64_t offset, const void *data, uint32_t length) {
    int kept = errno;
    char head[15];
    uint16_t name_length = (uint16_t)strlen(name);
    head[0] = kind;
    memcpy(head + 1, &name_length, 2);
    memcpy(head + 3, &length, 4);
    memcpy(head + 7, &offset, 8);
    put(head, sizeof head);
    put(name, name_length);
    put(data, length);
    errno = kept;
}

static const char *followed(int file) {
    return file >= 0 && file < MAX_FILES ? names[file] : NULL;
}

static int opened(int file, char *name, int flags, int existed) {
    if (file < 0 || name == NULL) {
        free(name);
        return file;
    }
    if (file >= MAX_FILES)
        fail("too many files");
    free(names[file]);
    names[file] = name;
    if (!existed)
        record('c', name, 0, "", 0);
    else if (flags & O_TRUNC)
        record('t', name, 0, "", 0);
    return file;
}

static int open_at(int base, const char *path, int flags, mode_t mode) {
    struct stat status;
    pthread_mutex_lock(&mutex);
    char *name = base == AT_FDCWD || path[0] == '/' ? name_of(path) : NULL;
    int existed = name == NULL || stat(path, &status) == 0;
    int file = base == AT_FDCWD ? real_open(path, flags, mode) : real_openat(base, path, flags, mode);
    file = opened(file, name, flags, existed);
    pthread_mutex_unlock(&mutex);
    return file;
}

static mode_t mode_in(int flags, va_list more) {
    return flags & (O_CREAT | O_TMPFILE) ? va_arg(more, mode_t) : 0;
}

#define OPEN(NAME)                                                                                                     \
    int NAME(const char *path, int flags, ...) {                                                                       \
        va_list more;                                                                                                  \
        va_start(more, flags);                                                                                         \
        mode_t mode = mode_in(flags, more);                                                                            \
        va_end(more);                                                                                                  \
        return open_at(AT_FDCWD, path, flags, mode);                                                                   \
    }
#define OPENAT(NAME)                                                                                                   \
    int NAME(int base, const char *path, int flags, ...) {                                                             \
        va_list more;                                                                                                  \
        va_start(more, flags);                                                                                         \
        mode_t mode = mode_in(flags, more);                                                                            \
        va_end(more);                                                                                                  \
        return open_at(base, path, flags, mode);                                                                       \
    }
OPEN(open)
OPEN(open64)
OPENAT(openat)
OPENAT(openat64)

int close(int file) {
    pthread_mutex_lock(&mutex);
    if (followed(file) != NULL) {
        free(names[file]);
        names[file] = NULL;
    }
    int result = real_close(file);
    pthread_mutex_unlock(&mutex);
    return result;
}

ssize_t write(int file, const void *data, size_t length) {
    if (followed(file) == NULL)
        return real_write(file, data, length);
    pthread_mutex_lock(&mutex);
    ssize_t written = real_write(file, data, length);
    if (written > 0) /* computed after the write, because O_APPEND determines the offset */
        record('w', names[file], (uint64_t)(lseek(file, 0, SEEK_CUR) - written), data, (uint32_t)written);
    pthread_mutex_unlock(&mutex);
    return written;
}

static ssize_t write_at(int file, const void *data, size_t length, off_t offset) {
    if (followed(file) == NULL)
        return real_pwrite(file, data, length, offset);
    pthread_mutex_lock(&mutex);
    ssize_t written = real_pwrite(file, data, length, offset);
    if (written > 0)
        record('w', names[file], (uint64_t)offset, data, (uint32_t)written);
    pthread_mutex_unlock(&mutex);
    return written;
}

ssize_t pwrite(int file, const void *data, size_t length, off_t offset) { return write_at(file, data, length, offset); }
ssize_t pwrite64(int file, const void *data, size_t length, off64_t offset) {
    return write_at(file, data, length, offset);
}

static int truncate_to(int file, off_t length) {
    pthread_mutex_lock(&mutex);
    int result = real_ftruncate(file, length);
    if (result == 0 && followed(file) != NULL)
        record('t', names[file], (uint64_t)length, "", 0);
    pthread_mutex_unlock(&mutex);
    return result;
}

int ftruncate(int file, off_t length) { return truncate_to(file, length); }
int ftruncate64(int file, off64_t length) { return truncate_to(file, length); }

static int sync_with(int (*real)(int), int file) {
    if (followed(file) == NULL)
        return real(file);
    pthread_mutex_lock(&mutex);
    int result = real(file);
    if (result == 0)
        record('s', names[file], 0, "", 0);
    pthread_mutex_unlock(&mutex);
    return result;
}

int fsync(int file) { return sync_with(real_fsync, file); }
int fdatasync(int file) { return sync_with(real_fdatasync, file); }

int rename(const char *from, const char *to) {
    pthread_mutex_lock(&mutex);
    char *old = name_of(from), *new = name_of(to);
    int result = real_rename(from, to);
    if (result == 0 && old != NULL && new != NULL)
        record('r', old, 0, new, (uint32_t)strlen(new));
    free(old);
    free(new);
    pthread_mutex_unlock(&mutex);
    return result;
}

int unlink(const char *path) {
    pthread_mutex_lock(&mutex);
    char *name = name_of(path);
    int result = real_unlink(path);
    if (result == 0 && name != NULL)
        record('u', name, 0, "", 0);
    free(name);
    pthread_mutex_unlock(&mutex);
    return result;
}
