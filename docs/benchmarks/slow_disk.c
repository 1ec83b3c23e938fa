/* A folder seen through a slow disk: read-only, by FUSE, with the system's page cache in front of it as of any disk.
 *
 *     gcc -O2 slow_disk.c -o slow_disk $(pkg-config --cflags --libs fuse3) -lpthread
 *     ./slow_disk FOLDER hdd 8 150 MOUNT     one head: 8 ms a seek, then 150 MB/s; it serves who waits upwards from where it is
 *     ./slow_disk FOLDER net 1 250 MOUNT     1 ms until an answer, any number at once, together 250 MB/s
 *
 * `getfattr -n user.reads FILE` tells, and forgets, how many requests there were, how many seeks (or answers), how many MB.
 */
#define FUSE_USE_VERSION 31
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <fuse3/fuse.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

struct request { off_t offset; size_t size; int done; struct request *next; };

static const char *root;
static int has_head;
static double seek_s, bytes_a_second;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t asked = PTHREAD_COND_INITIALIZER, answered = PTHREAD_COND_INITIALIZER;
static struct request *waiting;
static double busy_until;
static long requests, seeks;
static double megabytes;

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec * 1e-9;
}

static void sleep_until(double when) {
    struct timespec t = {(time_t)when, (long)((when - (time_t)when) * 1e9)};
    while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &t, NULL) == EINTR) {}
}

/* The head: next is whoever lies first from here on; if nobody does, whoever lies first of all. */
static void *serve(void *unused) {
    (void)unused;
    off_t head = 0;
    double time = 0;
    pthread_mutex_lock(&lock);
    for (;;) {
        if (!waiting) {
            while (!waiting) pthread_cond_wait(&asked, &lock);
            time = now();
        }
        struct request **best = NULL, **lowest = NULL;
        for (struct request **at = &waiting; *at; at = &(*at)->next) {
            if ((*at)->offset >= head && (!best || (*at)->offset < (*best)->offset)) best = at;
            if (!lowest || (*at)->offset < (*lowest)->offset) lowest = at;
        }
        if (!best) best = lowest;
        struct request *one = *best;
        *best = one->next;
        double over = one->offset >= head ? (one->offset - head) / bytes_a_second : 1e9;
        if (over >= seek_s) seeks++;
        time += (over < seek_s ? over : seek_s) + one->size / bytes_a_second;
        head = one->offset + one->size;
        pthread_mutex_unlock(&lock);
        sleep_until(time);
        pthread_mutex_lock(&lock);
        one->done = 1;
        pthread_cond_broadcast(&answered);
    }
    return NULL;
}

static void wait_for_disk(size_t size, off_t offset) {
    pthread_mutex_lock(&lock);
    requests++;
    megabytes += size / 1e6;
    if (has_head) {
        struct request one = {offset, size, 0, waiting};
        waiting = &one;
        pthread_cond_signal(&asked);
        while (!one.done) pthread_cond_wait(&answered, &lock);
        pthread_mutex_unlock(&lock);
        return;
    }
    double begun = now();
    busy_until = (busy_until > begun ? busy_until : begun) + size / bytes_a_second;
    double end = busy_until > begun + seek_s ? busy_until : begun + seek_s;
    seeks++;
    pthread_mutex_unlock(&lock);
    sleep_until(end);
}

static void whole(char *full, const char *path) { snprintf(full, 4096, "%s%s", root, path); }

static int slow_getattr(const char *path, struct stat *found, struct fuse_file_info *info) {
    (void)info;
    char full[4096];
    whole(full, path);
    return lstat(full, found) ? -errno : 0;
}

static int slow_readdir(const char *path, void *buffer, fuse_fill_dir_t fill, off_t offset, struct fuse_file_info *info,
                        enum fuse_readdir_flags flags) {
    (void)offset, (void)info, (void)flags;
    char full[4096];
    whole(full, path);
    DIR *folder = opendir(full);
    if (!folder) return -errno;
    for (struct dirent *each; (each = readdir(folder));) fill(buffer, each->d_name, NULL, 0, 0);
    closedir(folder);
    return 0;
}

static int slow_open(const char *path, struct fuse_file_info *info) {
    char full[4096];
    whole(full, path);
    int descriptor = open(full, O_RDONLY);
    if (descriptor < 0) return -errno;
    info->fh = descriptor;
    info->keep_cache = 1;
    return 0;
}

static int slow_read(const char *path, char *buffer, size_t size, off_t offset, struct fuse_file_info *info) {
    (void)path;
    wait_for_disk(size, offset);
    ssize_t found = pread(info->fh, buffer, size, offset);
    return found < 0 ? -errno : (int)found;
}

static int slow_release(const char *path, struct fuse_file_info *info) {
    (void)path;
    close(info->fh);
    return 0;
}

static int slow_getxattr(const char *path, const char *name, char *value, size_t size) {
    (void)path;
    if (strcmp(name, "user.reads")) return -ENODATA;
    if (!size) return 96;
    pthread_mutex_lock(&lock);
    int length = snprintf(value, size, "%ld requests, %ld seeks, %.1f MB", requests, seeks, megabytes);
    requests = seeks = 0;
    megabytes = 0;
    pthread_mutex_unlock(&lock);
    return length;
}

static void *slow_init(struct fuse_conn_info *connection, struct fuse_config *config) {
    config->kernel_cache = 1;
    config->attr_timeout = config->entry_timeout = 60;
    connection->max_readahead = 1 << 20;
    connection->max_background = connection->congestion_threshold = 64;
    pthread_t thread;
    if (has_head) pthread_create(&thread, NULL, serve, NULL);
    return NULL;
}

int main(int count, char **words) {
    if (count != 6 || (strcmp(words[2], "hdd") && strcmp(words[2], "net"))) {
        fprintf(stderr, "usage: %s FOLDER hdd|net MS_A_SEEK MB_A_SECOND MOUNT\n", words[0]);
        return 2;
    }
    root = words[1];
    has_head = !strcmp(words[2], "hdd");
    seek_s = atof(words[3]) * 1e-3;
    bytes_a_second = atof(words[4]) * 1e6;
    struct fuse_operations operations = {
        .getattr = slow_getattr, .readdir = slow_readdir, .open = slow_open, .read = slow_read,
        .release = slow_release, .getxattr = slow_getxattr, .init = slow_init,
    };
    char *given[] = {words[0], words[5], "-f", NULL};
    return fuse_main(3, given, &operations, NULL);
}
