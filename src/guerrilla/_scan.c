/* What scan.py does, in C: see there. Both look at each octet once, and neither reads one that is not there. */

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <string.h>

static int
has_octets(PyObject *octets)
{
    if (PyBytes_Check(octets)) {
        return 1;
    }
    PyErr_Format(PyExc_TypeError, "bytes are meant, found %.100s", Py_TYPE(octets)->tp_name);
    return 0;
}

static PyObject *
only_crlf(PyObject *module, PyObject *octets)
{
    (void)module;
    if (!has_octets(octets)) {
        return NULL;
    }
    const unsigned char *start = (const unsigned char *)PyBytes_AS_STRING(octets);
    const Py_ssize_t size = PyBytes_GET_SIZE(octets);
    if (size == 0) {
        Py_RETURN_TRUE;
    }
    /* No branch inside of the loop: so the compiler makes it one that looks at many octets at a time. */
    unsigned char alone = (start[0] == '\n') | (start[size - 1] == '\r');
    for (Py_ssize_t at = 0; at < size - 1; at++) {
        alone |= (start[at] == '\r') ^ (start[at + 1] == '\n');
    }
    return PyBool_FromLong(!alone);
}

static PyObject *
leading_dot(PyObject *module, PyObject *octets)
{
    (void)module;
    if (!has_octets(octets)) {
        return NULL;
    }
    const char *start = PyBytes_AS_STRING(octets);
    const Py_ssize_t size = PyBytes_GET_SIZE(octets);
    if (size > 2) {
        const char *from = start + 2;
        const char *dot;
        while ((dot = memchr(from, '.', (size_t)(start + size - from))) != NULL) {
            if (dot[-1] == '\n' && dot[-2] == '\r') {
                return PyLong_FromSsize_t(dot - 2 - start);
            }
            from = dot + 1;
        }
    }
    return PyLong_FromSsize_t(size);
}

static PyMethodDef functions[] = {
    {"leading_dot", leading_dot, METH_O, NULL},
    {"only_crlf", only_crlf, METH_O, NULL},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef module = {
    PyModuleDef_HEAD_INIT, .m_name = "_scan", .m_size = 0, .m_methods = functions,
};

PyMODINIT_FUNC
PyInit__scan(void)
{
    return PyModuleDef_Init(&module);
}
