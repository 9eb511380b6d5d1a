//! libmunge's functions, found at run time. The only unsafe code of this crate; called by [`crate::munge`] alone.
//!
//! Nothing here decides: it turns C strings and C buffers into owned Rust values and hands munge's code on.

use std::{
    ffi::{CStr, CString, c_char, c_int, c_uint, c_void},
    ptr,
};

use libloading::{Library, Symbol};
use nix::libc;

type Context = *mut c_void;

/// munge's options that are set here (`munge_opt_t` of munge.h).
const OPT_SOCKET: c_int = 8;
const OPT_UID_RESTRICTION: c_int = 9;

/// A code of `munge_err_t` and its text.
#[derive(Debug)]
pub(crate) struct Code {
    pub(crate) code: c_int,
    pub(crate) text: String,
}

/// What a credential held, read even where munge refused it.
#[derive(Debug)]
pub(crate) struct Opened {
    pub(crate) payload: Vec<u8>,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
}

/// The loaded library and its functions. The pointers stay good for as long as `_library` is loaded.
pub(crate) struct LibMunge {
    ctx_create: unsafe extern "C" fn() -> Context,
    ctx_destroy: unsafe extern "C" fn(Context),
    ctx_strerror: unsafe extern "C" fn(Context) -> *const c_char,
    ctx_set: unsafe extern "C" fn(Context, c_int, ...) -> c_int,
    strerror: unsafe extern "C" fn(c_int) -> *const c_char,
    encode: unsafe extern "C" fn(*mut *mut c_char, Context, *const c_void, c_int) -> c_int,
    decode: unsafe extern "C" fn(
        *const c_char,
        Context,
        *mut *mut c_void,
        *mut c_int,
        *mut libc::uid_t,
        *mut libc::gid_t,
    ) -> c_int,
    _library: Library,
}

impl LibMunge {
    pub(crate) fn load(file: &str) -> Result<Self, libloading::Error> {
        // SAFETY: libmunge has no initialisers with preconditions; the file name comes from this crate, not a peer.
        let library = unsafe { Library::new(file) }?;
        // SAFETY: the types above are those of munge.h 0.5, unchanged since 2004 (soname 2).
        unsafe {
            Ok(Self {
                ctx_create: *symbol(&library, "munge_ctx_create")?,
                ctx_destroy: *symbol(&library, "munge_ctx_destroy")?,
                ctx_strerror: *symbol(&library, "munge_ctx_strerror")?,
                ctx_set: *symbol(&library, "munge_ctx_set")?,
                strerror: *symbol(&library, "munge_strerror")?,
                encode: *symbol(&library, "munge_encode")?,
                decode: *symbol(&library, "munge_decode")?,
                _library: library,
            })
        }
    }

    pub(crate) fn encode(
        &self,
        socket: Option<&CStr>,
        payload: &[u8],
        restrict: Option<u32>,
    ) -> Result<CString, Code> {
        let session = Session::open(self, socket)?;
        if let Some(uid) = restrict {
            // SAFETY: the context is live; this option takes one uid_t.
            let code =
                unsafe { (self.ctx_set)(session.context, OPT_UID_RESTRICTION, uid as c_uint) };
            session.check(code)?;
        }
        let length = c_int::try_from(payload.len()).unwrap_or(c_int::MAX);
        let mut text: *mut c_char = ptr::null_mut();
        // SAFETY: munge reads `length` bytes of the payload, and sets `text` to a string it allocated, or leaves it.
        let code = unsafe {
            (self.encode)(&raw mut text, session.context, payload.as_ptr().cast(), length)
        };
        // SAFETY: `text` is null or a NUL-terminated string from malloc that is ours to free, once.
        let owned = (!text.is_null()).then(|| unsafe {
            let owned = CStr::from_ptr(text).to_owned();
            libc::free(text.cast());
            owned
        });
        session.check(code)?;
        Ok(owned.unwrap_or_default())
    }

    pub(crate) fn decode(
        &self,
        socket: Option<&CStr>,
        credential: &CStr,
    ) -> (Opened, Result<(), Code>) {
        let mut opened = Opened { payload: Vec::new(), uid: u32::MAX, gid: u32::MAX };
        let session = match Session::open(self, socket) {
            Ok(session) => session,
            Err(code) => return (opened, Err(code)),
        };
        let (mut buffer, mut length): (*mut c_void, c_int) = (ptr::null_mut(), 0);
        // SAFETY: all pointers are to live locals of munge's types; the credential is NUL-terminated.
        let code = unsafe {
            (self.decode)(
                credential.as_ptr(),
                session.context,
                &raw mut buffer,
                &raw mut length,
                &raw mut opened.uid,
                &raw mut opened.gid,
            )
        };
        if !buffer.is_null() {
            let length = usize::try_from(length).unwrap_or(0);
            // SAFETY: munge allocated `buffer` with malloc, holding `length` bytes; it is ours to free, once.
            unsafe {
                opened.payload = std::slice::from_raw_parts(buffer.cast::<u8>(), length).to_vec();
                libc::free(buffer);
            }
        }
        let result = session.check(code);
        (opened, result)
    }
}

/// # Safety
/// `T` must be the symbol's true type.
unsafe fn symbol<'lib, T>(
    library: &'lib Library,
    name: &str,
) -> Result<Symbol<'lib, T>, libloading::Error> {
    // SAFETY: the caller's promise.
    unsafe { library.get(name) }
}

/// One munge context, for one call: contexts are not thread-safe, and cost an allocation.
struct Session<'lib> {
    munge: &'lib LibMunge,
    context: Context,
}

impl<'lib> Session<'lib> {
    fn open(munge: &'lib LibMunge, socket: Option<&CStr>) -> Result<Self, Code> {
        // SAFETY: takes nothing; null is handled by `Drop` and by munge itself, which then uses its defaults.
        let context = unsafe { (munge.ctx_create)() };
        let session = Self { munge, context };
        if let Some(socket) = socket {
            // SAFETY: the context is live; this option takes one C string, which munge copies.
            let code = unsafe { (munge.ctx_set)(context, OPT_SOCKET, socket.as_ptr()) };
            session.check(code)?;
        }
        Ok(session)
    }

    fn check(&self, code: c_int) -> Result<(), Code> {
        if code == 0 {
            return Ok(());
        }
        // SAFETY: both return null or a string that lives at least as long as the context; it is copied at once.
        let text = unsafe {
            let detailed = (self.munge.ctx_strerror)(self.context);
            let text = if detailed.is_null() { (self.munge.strerror)(code) } else { detailed };
            if text.is_null() {
                String::new()
            } else {
                CStr::from_ptr(text).to_string_lossy().into_owned()
            }
        };
        Err(Code { code, text })
    }
}

impl Drop for Session<'_> {
    fn drop(&mut self) {
        if !self.context.is_null() {
            // SAFETY: created by `ctx_create`, destroyed once.
            unsafe { (self.munge.ctx_destroy)(self.context) }
        }
    }
}
