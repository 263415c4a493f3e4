//! Shared libraries that are opened at run time, so that a build with the `cuda` feature starts on every machine.
//!
//! Own declarations, not a crate's: status codes arrive as plain integers (a newer library may know more of them than
//! an enumeration), nothing panics when a library or a symbol is missing, and nothing is linked.

use std::ffi::{CStr, CString, c_void};

/// What is missing, as a lower-case fragment.
pub(super) type Missing = String;

/// Opens the first of `names` that is there, for good.
pub(super) fn open(names: &[&str]) -> Result<*mut c_void, Missing> {
    let mut reason = String::new();
    for name in names {
        let Ok(text) = CString::new(*name) else { continue };
        // SAFETY: a NUL-terminated string. The library's initialisers run: those of the driver and of cuDNN.
        let handle = unsafe { libc::dlopen(text.as_ptr(), libc::RTLD_NOW | libc::RTLD_GLOBAL) };
        if !handle.is_null() {
            return Ok(handle);
        }
        // SAFETY: after a failure dlerror gives a NUL-terminated string or null.
        let error = unsafe { libc::dlerror() };
        if !error.is_null() && reason.is_empty() {
            // SAFETY: checked above; valid until the next call.
            reason = unsafe { CStr::from_ptr(error) }.to_string_lossy().into_owned();
        }
    }
    Err(format!("`{}` cannot be opened ({reason})", names.first().unwrap_or(&"")))
}

/// The address of `symbol` (NUL-terminated) in an open library.
pub(super) fn find(handle: *mut c_void, symbol: &str) -> Result<*mut c_void, Missing> {
    // SAFETY: an open library and a NUL-terminated string.
    let address = unsafe { libc::dlsym(handle, symbol.as_ptr().cast()) };
    if address.is_null() {
        return Err(format!("the library that was found lacks `{}`", symbol.trim_end_matches('\0')));
    }
    Ok(address)
}

/// Declares a library: a struct of its functions, under their C names.
macro_rules! library {
    ($(#[$meta:meta])* struct $name:ident { $( fn $function:ident($($argument:ty),* $(,)?) -> $result:ty; )* }) => {
        $(#[$meta])*
        #[allow(non_snake_case)]
        pub(super) struct $name { $( pub(super) $function: unsafe extern "C" fn($($argument),*) -> $result, )* }

        impl $name {
            /// Opens the first of `names` that is there.
            pub(super) fn open(names: &[&str]) -> Result<$name, $crate::kernels::cuda::library::Missing> {
                let handle = $crate::kernels::cuda::library::open(names)?;
                Ok($name { $( $function: {
                    let address = $crate::kernels::cuda::library::find(handle, concat!(stringify!($function), "\0"))?;
                    // SAFETY: the declaration is that of the library's header.
                    unsafe {
                        std::mem::transmute::<*mut std::ffi::c_void, unsafe extern "C" fn($($argument),*) -> $result>(
                            address,
                        )
                    }
                }, )* })
            }
        }
    };
}
pub(super) use library;
