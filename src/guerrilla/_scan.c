/* What scan.py does, in C: see there. All of it takes a time that grows with the octets, and reads none that is not
   there. */

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

/* Whether each CR and each LF is half of a CRLF. */
static int
has_only_crlf(const char *start, Py_ssize_t size)
{
    if (size == 0) {
        return 1;
    }
    /* No branch inside of the loop: so the compiler makes it one that looks at many octets at a time. */
    unsigned char alone = (start[0] == '\n') | (start[size - 1] == '\r');
    for (Py_ssize_t at = 0; at < size - 1; at++) {
        alone |= (start[at] == '\r') ^ (start[at + 1] == '\n');
    }
    return !alone;
}

static PyObject *
only_crlf(PyObject *module, PyObject *octets)
{
    (void)module;
    if (!has_octets(octets)) {
        return NULL;
    }
    return PyBool_FromLong(has_only_crlf(PyBytes_AS_STRING(octets), PyBytes_GET_SIZE(octets)));
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

static PyObject *
empty_line(PyObject *module, PyObject *const *arguments, Py_ssize_t count)
{
    (void)module;
    if (count != 2) {
        return PyErr_Format(PyExc_TypeError, "two arguments are meant, found %zd", count);
    }
    if (!has_octets(arguments[0])) {
        return NULL;
    }
    Py_ssize_t size = PyLong_AsSsize_t(arguments[1]);
    if (size == -1 && PyErr_Occurred()) {
        return NULL;
    }
    if (size > PyBytes_GET_SIZE(arguments[0])) {
        size = PyBytes_GET_SIZE(arguments[0]);
    }
    const char *start = PyBytes_AS_STRING(arguments[0]);
    const char *from = start;
    while (size - (from - start) >= 4) {
        const char *found = memchr(from, '\r', (size_t)(size - (from - start) - 3));
        if (found == NULL) {
            break;
        }
        if (memcmp(found, "\r\n\r\n", 4) == 0) {
            return PyLong_FromSsize_t(found - start);
        }
        from = found + 1;
    }
    return PyLong_FromLong(-1);
}

/* Whether all is visible US-ASCII, blanks, tabs, CR and LF. No branch inside of this loop either. */
static int
has_only_text(const char *start, Py_ssize_t size)
{
    unsigned char other = 0;
    for (Py_ssize_t at = 0; at < size; at++) {
        const unsigned char octet = (unsigned char)start[at];
        other |= ((octet < ' ') & (octet != '\t') & (octet != '\r') & (octet != '\n')) | (octet > '~');
    }
    return !other;
}

/* Where the next CRLF stands, among octets in which each CR is half of one; or the end. */
static const char *
line_end(const char *from, const char *end)
{
    const char *found = memchr(from, '\r', (size_t)(end - from));
    return found == NULL ? end : found;
}

/* Make a string of what stands between, without the CRLF in it, which are so many. */
static PyObject *
unfolded(const char *from, const char *end, Py_ssize_t folds)
{
    PyObject *text = PyUnicode_New(end - from - 2 * folds, 127);
    if (text == NULL) {
        return NULL;
    }
    char *to = PyUnicode_DATA(text);
    for (; folds > 0; folds--) {
        const char *fold = line_end(from, end);
        memcpy(to, from, (size_t)(fold - from));
        to += fold - from;
        from = fold + 2;
    }
    memcpy(to, from, (size_t)(end - from));
    return text;
}

/* Append the field that begins at *next to the list, and go behind it. Return 1; 0 if it is none, or not as most are;
   -1 if there is an error. */
static int
append_field(PyObject *fields, const char **next, const char *end, Py_ssize_t longest_name, Py_ssize_t longest_value)
{
    const char *start = *next;
    const char *colon = start;
    while (colon < end && *colon > ' ' && *colon != ':') {
        colon++;
    }
    if (colon == end || *colon != ':' || colon == start || colon - start > longest_name) {
        return 0;
    }
    const char *from = colon + 1;
    const char *to = line_end(from, end);
    Py_ssize_t folds = 0;
    while (end - to > 2 && (to[2] == ' ' || to[2] == '\t')) {
        to = line_end(to + 2, end);
        folds++;
    }
    *next = end - to > 2 ? to + 2 : end;
    /* Outer blanks go, and with them the CRLF that fold there. */
    while (from < to && *from <= ' ') {
        folds -= *from++ == '\n';
    }
    while (from < to && to[-1] <= ' ') {
        folds -= *--to == '\n';
    }
    if (to - from - 2 * folds > longest_value) {
        return 0;
    }
    PyObject *name = unfolded(start, colon, 0);
    PyObject *value = name == NULL ? NULL : unfolded(from, to, folds);
    PyObject *field = value == NULL ? NULL : PyTuple_Pack(2, name, value);
    const int appended = field == NULL ? -1 : PyList_Append(fields, field);
    Py_XDECREF(name);
    Py_XDECREF(value);
    Py_XDECREF(field);
    return appended < 0 ? -1 : 1;
}

static PyObject *
ordinary_fields(PyObject *module, PyObject *const *arguments, Py_ssize_t count)
{
    (void)module;
    if (count != 4) {
        return PyErr_Format(PyExc_TypeError, "four arguments are meant, found %zd", count);
    }
    if (!has_octets(arguments[0])) {
        return NULL;
    }
    Py_ssize_t most[3]; /* lines, octets of a name, octets of a value */
    for (int each = 0; each < 3; each++) {
        most[each] = PyLong_AsSsize_t(arguments[each + 1]);
        if (most[each] == -1 && PyErr_Occurred()) {
            return NULL;
        }
    }
    const char *next = PyBytes_AS_STRING(arguments[0]);
    const Py_ssize_t size = PyBytes_GET_SIZE(arguments[0]);
    const char *end = next + size;
    if (!has_only_text(next, size) || !has_only_crlf(next, size)) {
        Py_RETURN_NONE;
    }
    PyObject *fields = PyList_New(0);
    if (fields == NULL) {
        return NULL;
    }
    int appended = 1;
    while (appended > 0 && next < end) {
        appended = PyList_GET_SIZE(fields) < most[0] ? append_field(fields, &next, end, most[1], most[2]) : 0;
    }
    if (appended > 0) {
        return fields;
    }
    Py_DECREF(fields);
    return appended < 0 ? NULL : Py_NewRef(Py_None);
}

static PyMethodDef functions[] = {
    {"empty_line", (PyCFunction)(void (*)(void))empty_line, METH_FASTCALL, NULL},
    {"leading_dot", leading_dot, METH_O, NULL},
    {"only_crlf", only_crlf, METH_O, NULL},
    {"ordinary_fields", (PyCFunction)(void (*)(void))ordinary_fields, METH_FASTCALL, NULL},
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
