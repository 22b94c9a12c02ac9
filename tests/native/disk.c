/* A disk that can be watched, preloaded below SQLite: it ends the process at the n-th change of a file in one
 * directory, and keeps beside each file a twin of what was last synced, which is all that a power cut leaves.
 *
 * disk_watch(directory, twins): changes below `directory` count from now on; `twins`: where twins are kept, NULL for none.
 * disk_end_at(n): the n-th change from now on does not happen any more, or half of it does; 0: none.
 * disk_changes(): how many there were since.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <unistd.h>

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

static char watched[PATH_MAX], twins[PATH_MAX];
static size_t watched_length;
static atomic_long changes, end_at;
static pthread_mutex_t copying = PTHREAD_MUTEX_INITIALIZER;

void disk_watch(const char *directory, const char *beside) {
    snprintf(watched, sizeof watched, "%s/", directory);
    watched_length = strlen(watched);
    twins[0] = 0;
    if (beside != NULL) snprintf(twins, sizeof twins, "%s", beside);
}

void disk_end_at(long n) {
    atomic_store(&changes, 0);
    atomic_store(&end_at, n);
}

long disk_changes(void) { return atomic_load(&changes); }

/* The name below the watched directory, NULL for other files and for shared memory, which no disk has. */
static const char *name_in(const char *path) {
    if (!watched_length || path == NULL || strncmp(path, watched, watched_length)) return NULL;
    const char *name = path + watched_length;
    size_t length = strlen(name);
    return length > 4 && !strcmp(name + length - 4, "-shm") ? NULL : name;
}

static const char *name_of(int descriptor, char *room) {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    ssize_t length = readlink(link, room, PATH_MAX - 1);
    if (length <= 0) return NULL;
    room[length] = 0;
    return name_in(room);
}

static void end(void) {
    kill(getpid(), SIGKILL);
    for (;;) pause();
}

/* Counts a change; whether it is the last. */
static int is_last(void) {
    long n = atomic_fetch_add(&changes, 1) + 1;
    return n == atomic_load(&end_at);
}

static void twin_path(const char *name, char *path) {
    if (snprintf(path, PATH_MAX, "%s/%s", twins, name) >= PATH_MAX) abort();
}

/* The twin is what the file is now. */
static void sync_twin(int descriptor, const char *name) {
    char path[PATH_MAX], part[PATH_MAX], buffer[65536];
    if (!twins[0]) return;
    twin_path(name, path);
    twin_path("being-copied", part);
    pthread_mutex_lock(&copying);
    int twin = REAL(open)(part, O_WRONLY | O_CREAT | O_TRUNC, 0600);
    off_t at = 0;
    for (ssize_t count; (count = pread(descriptor, buffer, sizeof buffer, at)) > 0; at += count)
        if (REAL(pwrite)(twin, buffer, count, at) != count) abort();
    close(twin);
    if (REAL(rename)(part, path)) abort();
    pthread_mutex_unlock(&copying);
}

static ssize_t write_at(int descriptor, const void *bytes, size_t count, off_t at) {
    char room[PATH_MAX];
    if (watched_length && name_of(descriptor, room) != NULL && is_last()) {
        REAL(pwrite)(descriptor, bytes, count / 2, at); /* torn */
        end();
    }
    return REAL(pwrite)(descriptor, bytes, count, at);
}

ssize_t pwrite(int descriptor, const void *bytes, size_t count, off_t at) { return write_at(descriptor, bytes, count, at); }

ssize_t pwrite64(int descriptor, const void *bytes, size_t count, off64_t at) {
    return write_at(descriptor, bytes, count, at);
}

ssize_t write(int descriptor, const void *bytes, size_t count) {
    char room[PATH_MAX];
    if (watched_length && name_of(descriptor, room) != NULL && is_last()) end();
    return REAL(write)(descriptor, bytes, count);
}

static int truncate_to(int descriptor, off_t size) {
    char room[PATH_MAX];
    if (watched_length && name_of(descriptor, room) != NULL && is_last()) end();
    return REAL(ftruncate)(descriptor, size);
}

int ftruncate(int descriptor, off_t size) { return truncate_to(descriptor, size); }
int ftruncate64(int descriptor, off64_t size) { return truncate_to(descriptor, size); }

static int sync_file(int descriptor, int (*really)(int)) {
    char room[PATH_MAX];
    const char *name = watched_length ? name_of(descriptor, room) : NULL;
    if (name == NULL) return really(descriptor);
    if (is_last()) end();
    int result = really(descriptor);
    if (!result) sync_twin(descriptor, name);
    return result;
}

int fsync(int descriptor) { return sync_file(descriptor, REAL(fsync)); }
int fdatasync(int descriptor) { return sync_file(descriptor, REAL(fdatasync)); }

/* What happens to names is on the disk at once, in order. */
int rename(const char *from, const char *to) {
    char old[PATH_MAX], new[PATH_MAX];
    const char *name = name_in(from), *other = name_in(to);
    if (name != NULL && is_last()) end();
    int result = REAL(rename)(from, to);
    if (!result && name != NULL && other != NULL && twins[0]) {
        twin_path(name, old);
        twin_path(other, new);
        if (REAL(rename)(old, new)) REAL(unlink)(new);
    }
    return result;
}

int link(const char *from, const char *to) {
    char old[PATH_MAX], new[PATH_MAX];
    const char *name = name_in(from), *other = name_in(to);
    if (other != NULL && is_last()) end();
    int result = REAL(link)(from, to);
    if (!result && name != NULL && other != NULL && twins[0]) {
        twin_path(name, old);
        twin_path(other, new);
        REAL(link)(old, new);
    }
    return result;
}

int unlink(const char *path) {
    char twin[PATH_MAX];
    const char *name = name_in(path);
    if (name != NULL && is_last()) end();
    int result = REAL(unlink)(path);
    if (!result && name != NULL && twins[0]) {
        twin_path(name, twin);
        REAL(unlink)(twin);
    }
    return result;
}
