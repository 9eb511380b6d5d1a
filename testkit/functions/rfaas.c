/* A function library in rFaaS's form, unchanged: no header, no knowledge of Gleaner. Compiled by tests with the system's cc. */
#include <stdint.h>
#include <string.h>

uint32_t empty(void *args, uint32_t size, void *res) {
    int *src = (int *)args, *dest = (int *)res;
    *dest = *src;
    (void)size;
    return sizeof(int);
}

uint32_t reverse(void *args, uint32_t size, void *res) {
    const unsigned char *src = args;
    unsigned char *dest = res;
    for (uint32_t i = 0; i < size; i++) dest[size - 1 - i] = src[i];
    return size;
}

/* Uses its input as room to work, as rFaaS's functions may. */
uint32_t upper(void *args, uint32_t size, void *res) {
    char *src = args;
    for (uint32_t i = 0; i < size; i++)
        if (src[i] >= 'a' && src[i] <= 'z') src[i] -= 32;
    memcpy(res, src, size);
    return size;
}
