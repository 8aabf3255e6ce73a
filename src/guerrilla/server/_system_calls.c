/* What system_calls.py does, in C: see there. None of it waits, so the interpreter's lock is held meanwhile: to give it
   back and to take it again costs as much as the calls, and more where another thread wants it. */

#ifndef _GNU_SOURCE
#define _GNU_SOURCE /* accept4 */
#endif
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

static int
would_wait(int error)
{
    return error == EAGAIN || error == EWOULDBLOCK;
}

/* Read the two arguments of receive and send: a descriptor, and an object of a type. Return -1 if they are others. */
static int
descriptor_and(PyObject *const *arguments, Py_ssize_t count, PyTypeObject *type)
{
    if (count != 2 || !PyObject_TypeCheck(arguments[1], type)) {
        PyErr_Format(PyExc_TypeError, "a descriptor and %s are meant", type->tp_name);
        return -1;
    }
    const long number = PyLong_AsLong(arguments[0]);
    if (number == -1 && PyErr_Occurred()) {
        return -1;
    }
    if (number < 0 || number > INT_MAX) {
        PyErr_Format(PyExc_ValueError, "a descriptor is meant, found %ld", number);
        return -1;
    }
    return (int)number;
}

static PyObject *
receive_octets(PyObject *module, PyObject *const *arguments, Py_ssize_t count)
{
    (void)module;
    const int number = descriptor_and(arguments, count, &PyByteArray_Type);
    if (number < 0) {
        return NULL;
    }
    char *buffer = PyByteArray_AS_STRING(arguments[1]);
    const ssize_t size = recv(number, buffer, (size_t)PyByteArray_GET_SIZE(arguments[1]), MSG_DONTWAIT);
    if (size >= 0) {
        return PyBytes_FromStringAndSize(buffer, size);
    }
    return would_wait(errno) ? Py_NewRef(Py_None) : PyErr_SetFromErrno(PyExc_OSError);
}

static PyObject *
send_octets(PyObject *module, PyObject *const *arguments, Py_ssize_t count)
{
    (void)module;
    const int number = descriptor_and(arguments, count, &PyBytes_Type);
    if (number < 0) {
        return NULL;
    }
    const char *octets = PyBytes_AS_STRING(arguments[1]);
    const ssize_t size = send(number, octets, (size_t)PyBytes_GET_SIZE(arguments[1]), MSG_DONTWAIT | MSG_NOSIGNAL);
    if (size >= 0) {
        return PyLong_FromSsize_t(size);
    }
    return would_wait(errno) ? PyLong_FromLong(0) : PyErr_SetFromErrno(PyExc_OSError);
}

static PyObject *
accept_one(PyObject *module, PyObject *listening)
{
    (void)module;
    const int listener = PyObject_AsFileDescriptor(listening);
    if (listener < 0) {
        return NULL;
    }
    union {
        struct sockaddr any;
        struct sockaddr_in four;
        struct sockaddr_in6 six;
        struct sockaddr_storage room;
    } peer = {.room = {0}};
    socklen_t size = sizeof peer;
    const int number = accept4(listener, &peer.any, &size, SOCK_CLOEXEC | SOCK_NONBLOCK);
    if (number < 0) {
        return would_wait(errno) ? Py_NewRef(Py_None) : PyErr_SetFromErrno(PyExc_OSError);
    }
    char address[INET6_ADDRSTRLEN] = "";
    int port = 0;
    if (peer.any.sa_family == AF_INET) {
        inet_ntop(AF_INET, &peer.four.sin_addr, address, sizeof address);
        port = ntohs(peer.four.sin_port);
    }
    else if (peer.any.sa_family == AF_INET6) {
        inet_ntop(AF_INET6, &peer.six.sin6_addr, address, sizeof address);
        port = ntohs(peer.six.sin6_port);
    }
    PyObject *accepted = Py_BuildValue("(isi)", number, address, port);
    if (accepted == NULL) {
        close(number);
    }
    return accepted;
}

static PyMethodDef functions[] = {
    {"accept", accept_one, METH_O, NULL},
    {"receive", (PyCFunction)(void (*)(void))receive_octets, METH_FASTCALL, NULL},
    {"send", (PyCFunction)(void (*)(void))send_octets, METH_FASTCALL, NULL},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef module = {
    PyModuleDef_HEAD_INIT, .m_name = "_system_calls", .m_size = 0, .m_methods = functions,
};

PyMODINIT_FUNC
PyInit__system_calls(void)
{
    return PyModuleDef_Init(&module);
}
