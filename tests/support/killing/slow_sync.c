/*
 * Makes fsync and fdatasync slow while a file exists, as on a disk that needs long to write.
 *
 * cc -shared -fPIC -O1 -o slow_sync.so slow_sync.c -ldl
 * LD_PRELOAD=./slow_sync.so SLOW_SYNC_FILE=/the/file SLOW_SYNC_MILLISECONDS=500 program
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

static void wait_for_the_disk(void) {
    const char *file = getenv("SLOW_SYNC_FILE"), *milliseconds = getenv("SLOW_SYNC_MILLISECONDS");
    if (file == NULL || milliseconds == NULL || access(file, F_OK) != 0)
        return;
    long wait = atol(milliseconds);
    struct timespec left = {wait / 1000, wait % 1000 * 1000000L};
    while (nanosleep(&left, &left) != 0)
        ;
}

static int sync_with(const char *name, int file) {
    int (*real)(int) = dlsym(RTLD_NEXT, name);
    wait_for_the_disk();
    return real(file);
}

int fsync(int file) { return sync_with("fsync", file); }
int fdatasync(int file) { return sync_with("fdatasync", file); }
