//! A GPU through the CUDA driver: memory, copies, launches, and recorded sequences of launches.
//!
//! Everything runs on one stream, in order. Nothing waits but [`Gpu::download`] and [`Gpu::wait`]. Buffers are made
//! before a loop and live as long as it, so there is no memory pool to tune.

use super::cudnn;
#[cfg(test)]
use super::emulation::Emulation;
use super::library::{Missing, library};
use crate::error::{Error, Result};
use std::collections::HashMap;
use std::ffi::{CStr, CString, c_char, c_int, c_uint, c_void};
use std::ptr::null_mut;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

/// The device code, compiled by build.rs: machine code for each generation, and PTX for later ones.
const MODULE: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/kernels.fatbin"));

/// Threads of a block; the device code has the same constant.
pub const BLOCK: usize = 256;

/// An address in device memory.
pub type Address = u64;

type Handle = *mut c_void;

library! {
    /// The driver API (cuda.h of CUDA 12 and 13).
    struct DriverLibrary {
        fn cuInit(c_uint) -> c_int;
        fn cuDriverGetVersion(*mut c_int) -> c_int;
        fn cuDeviceGetCount(*mut c_int) -> c_int;
        fn cuDeviceGet(*mut c_int, c_int) -> c_int;
        fn cuDeviceGetName(*mut c_char, c_int, c_int) -> c_int;
        fn cuDeviceGetAttribute(*mut c_int, c_int, c_int) -> c_int;
        fn cuDevicePrimaryCtxRetain(*mut Handle, c_int) -> c_int;
        fn cuCtxSetCurrent(Handle) -> c_int;
        fn cuStreamCreate(*mut Handle, c_uint) -> c_int;
        fn cuStreamSynchronize(Handle) -> c_int;
        fn cuStreamBeginCapture_v2(Handle, c_int) -> c_int;
        fn cuStreamEndCapture(Handle, *mut Handle) -> c_int;
        fn cuGraphInstantiateWithFlags(*mut Handle, Handle, u64) -> c_int;
        fn cuGraphLaunch(Handle, Handle) -> c_int;
        fn cuGraphDestroy(Handle) -> c_int;
        fn cuGraphExecDestroy(Handle) -> c_int;
        fn cuMemAlloc_v2(*mut Address, usize) -> c_int;
        fn cuMemFree_v2(Address) -> c_int;
        fn cuMemGetInfo_v2(*mut usize, *mut usize) -> c_int;
        fn cuMemsetD8Async(Address, u8, usize, Handle) -> c_int;
        fn cuMemcpyHtoDAsync_v2(Address, *const c_void, usize, Handle) -> c_int;
        fn cuMemcpyDtoHAsync_v2(*mut c_void, Address, usize, Handle) -> c_int;
        fn cuModuleLoadData(*mut Handle, *const c_void) -> c_int;
        fn cuModuleGetFunction(*mut Handle, Handle, *const c_char) -> c_int;
        fn cuLaunchKernel(
            Handle,
            c_uint,
            c_uint,
            c_uint,
            c_uint,
            c_uint,
            c_uint,
            c_uint,
            Handle,
            *mut *mut c_void,
            *mut *mut c_void,
        ) -> c_int;
        fn cuGetErrorName(c_int, *mut *const c_char) -> c_int;
        fn cuGetErrorString(c_int, *mut *const c_char) -> c_int;
    }
}

/// CUDA_ERROR_OUT_OF_MEMORY.
const OUT_OF_MEMORY: c_int = 2;
/// CU_STREAM_NON_BLOCKING: no order with respect to the default stream, which nothing here uses.
const NON_BLOCKING: c_uint = 1;
/// CU_STREAM_CAPTURE_MODE_THREAD_LOCAL.
const CAPTURE_THREAD_LOCAL: c_int = 1;
/// CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR.
const COMPUTE_CAPABILITY_MAJOR: c_int = 75;

impl DriverLibrary {
    /// The driver, initialised; opened once in a process.
    fn get() -> Result<&'static DriverLibrary, Missing> {
        static LIBRARY: OnceLock<Result<DriverLibrary, Missing>> = OnceLock::new();
        let library = LIBRARY.get_or_init(|| {
            let library = DriverLibrary::open(&["libcuda.so.1", "libcuda.so"])?;
            // SAFETY: the flags must be 0.
            match unsafe { (library.cuInit)(0) } {
                0 => Ok(library),
                status => Err(format!("the NVIDIA driver does not start: {}", library.reason(status))),
            }
        });
        library.as_ref().map_err(Clone::clone)
    }

    /// What a status means, in the driver's words.
    fn reason(&self, status: c_int) -> String {
        let text = |function: unsafe extern "C" fn(c_int, *mut *const c_char) -> c_int| {
            let mut text = std::ptr::null();
            // SAFETY: the driver writes the address of a static string, or null for an unknown status.
            unsafe {
                function(status, &raw mut text);
                if text.is_null() { String::new() } else { CStr::from_ptr(text).to_string_lossy().into_owned() }
            }
        };
        format!("{} ({}, {status})", text(self.cuGetErrorString), text(self.cuGetErrorName))
    }
}

/// The names of the GPUs of this machine, by number.
///
/// # Errors
/// There is none, or no driver: what is missing, as a lower-case fragment.
pub fn devices() -> Result<Vec<String>, String> {
    let library = DriverLibrary::get()?;
    let mut count = 0;
    // SAFETY: the driver is initialised and writes one integer.
    let status = unsafe { (library.cuDeviceGetCount)(&raw mut count) };
    if status != 0 {
        return Err(library.reason(status));
    }
    if count == 0 {
        return Err("the NVIDIA driver finds no GPU".to_string());
    }
    (0..count).map(|number| library.device_name(number)).collect()
}

impl DriverLibrary {
    fn device_name(&self, number: c_int) -> Result<String, Missing> {
        let (mut device, mut name) = (0, [0u8; 128]);
        // SAFETY: the driver writes one integer, and at most 127 characters and a NUL.
        let status = unsafe {
            match (self.cuDeviceGet)(&raw mut device, number) {
                0 => (self.cuDeviceGetName)(name.as_mut_ptr().cast(), name.len() as c_int, device),
                status => status,
            }
        };
        match (status, CStr::from_bytes_until_nul(&name)) {
            (0, Ok(name)) => Ok(name.to_string_lossy().into_owned()),
            _ => Err(self.reason(status)),
        }
    }
}

/// A GPU in use. Its context and stream live until the process ends.
pub struct Gpu {
    machine: Machine,
    /// How records name it: number, model, versions of driver and cuDNN.
    name: String,
}

pub(super) enum Machine {
    Real(Real),
    #[cfg(test)]
    Emulated(Emulation),
}

/// What the driver gave.
pub(super) struct Real {
    library: &'static DriverLibrary,
    context: Handle,
    pub(super) stream: Handle,
    module: Handle,
    functions: Mutex<HashMap<(&'static str, Option<Element>), usize>>,
    pub(super) cudnn: Mutex<cudnn::Cudnn>,
}

// SAFETY: the driver's handles may be used from every thread that has made the context current, which every method
// does first; cuDNN's handle stands behind a lock.
unsafe impl Send for Real {}
// SAFETY: as above.
unsafe impl Sync for Real {}

/// The type of activations.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Element {
    /// f32.
    F32,
    /// bfloat16.
    Bf16,
}

impl Element {
    /// Bytes of one.
    pub fn size(self) -> usize {
        match self {
            Element::F32 => 4,
            Element::Bf16 => 2,
        }
    }

    /// Elements of a vector of 16 bytes.
    pub fn vector(self) -> usize {
        16 / self.size()
    }

    fn suffix(self) -> &'static str {
        match self {
            Element::F32 => "_f32",
            Element::Bf16 => "_bf16",
        }
    }
}

/// A kernel's argument.
#[derive(Clone, Copy, Debug)]
pub enum Argument {
    /// An address; 0 is null.
    Pointer(Address),
    /// 32 bits.
    Int(u32),
    /// f32.
    Float(f32),
    /// f64.
    Double(f64),
}

impl Argument {
    /// Its bytes, and how many there are.
    fn encode(self) -> (u64, usize) {
        match self {
            Argument::Pointer(address) => (address, 8),
            Argument::Int(value) => (u64::from(value), 4),
            Argument::Float(value) => (u64::from(value.to_bits()), 4),
            Argument::Double(value) => (value.to_bits(), 8),
        }
    }
}

/// A recorded sequence of launches.
pub struct Recording {
    gpu: Arc<Gpu>,
    executable: Handle,
}

// SAFETY: a handle that the driver lets any thread use.
unsafe impl Send for Recording {}
// SAFETY: only launched, from behind a unique owner.
unsafe impl Sync for Recording {}

impl Gpu {
    /// The GPU `number`.
    ///
    /// # Errors
    /// What is missing, and how to get it.
    pub fn new(number: usize) -> Result<Arc<Gpu>> {
        let missing = |what: Missing| {
            Error::user(format!("GPU {number} cannot be used: {what}")).hint(
                "needed are an NVIDIA driver of CUDA 12 or later, cuDNN 9 (`libcudnn.so.9`) on LD_LIBRARY_PATH, and a \
                 GPU from Ampere on; or say `--device cpu`",
            )
        };
        let (real, name) = Real::new(number).map_err(missing)?;
        Ok(Arc::new(Gpu { machine: Machine::Real(real), name }))
    }

    /// A GPU that the host plays, for tests; says nothing about a real one.
    #[cfg(test)]
    pub(crate) fn emulated() -> Arc<Gpu> {
        Arc::new(Gpu { machine: Machine::Emulated(Emulation::new()), name: "emulated".into() })
    }

    pub(super) fn machine(&self) -> &Machine {
        &self.machine
    }

    /// How records name it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Free and total memory, in bytes.
    ///
    /// # Errors
    /// What the driver says.
    pub fn memory(&self) -> Result<(usize, usize)> {
        match &self.machine {
            Machine::Real(real) => {
                let (mut free, mut total) = (0, 0);
                real.bind()?;
                // SAFETY: the driver writes two integers.
                real.check("ask for the free memory", unsafe {
                    (real.library.cuMemGetInfo_v2)(&raw mut free, &raw mut total)
                })?;
                Ok((free, total))
            }
            #[cfg(test)]
            Machine::Emulated(_) => Ok((1 << 30, 1 << 30)),
        }
    }

    /// Runs a kernel over `grid` blocks of [`BLOCK`] threads.
    ///
    /// # Errors
    /// What the driver says; also errors of earlier launches.
    pub fn launch(
        &self,
        kernel: &'static str,
        element: Option<Element>,
        grid: (usize, usize),
        arguments: &[Argument],
    ) -> Result<()> {
        if grid.0 == 0 || grid.1 == 0 {
            return Ok(());
        }
        let grid = (u32::try_from(grid.0), u32::try_from(grid.1));
        let (Ok(grid_x), Ok(grid_y)) = grid else {
            return Err(Error::stage(format!("`{kernel}` over too many values for one launch"))
                .hint("choose a smaller `batch_size`"));
        };
        let mut values: Vec<u64> = arguments.iter().map(|argument| argument.encode().0).collect();
        let mut pointers: Vec<*mut c_void> = values.iter_mut().map(|value| (&raw mut *value).cast()).collect();
        match &self.machine {
            Machine::Real(real) => {
                real.bind()?;
                let function = real.function(kernel, element)?;
                // SAFETY: the arguments are those of the kernel (the emulation checks their number and sizes, for all
                // kernels, in the tests), and the buffers behind them outlive the stream's work: freeing one waits.
                let status = unsafe {
                    (real.library.cuLaunchKernel)(
                        function,
                        grid_x,
                        grid_y,
                        1,
                        BLOCK as c_uint,
                        1,
                        1,
                        0,
                        real.stream,
                        pointers.as_mut_ptr(),
                        null_mut(),
                    )
                };
                real.check(&format!("launch `{kernel}`"), status)
            }
            #[cfg(test)]
            Machine::Emulated(emulation) => {
                let name = format!("{kernel}{}", element.map_or("", Element::suffix));
                let sizes: Vec<usize> = arguments.iter().map(|argument| argument.encode().1).collect();
                emulation.launch(&name, (grid_x, grid_y), BLOCK as u32, &mut pointers, &sizes);
                Ok(())
            }
        }
    }

    /// Copies to the device, behind all that was launched before.
    ///
    /// # Errors
    /// More bytes than the buffer has; what the driver says.
    pub fn upload<T: Plain>(&self, from: &[T], to: &Buffer, at: usize) -> Result<()> {
        let bytes = std::mem::size_of_val(from);
        to.check_range(at, bytes)?;
        if bytes == 0 {
            return Ok(());
        }
        match &self.machine {
            Machine::Real(real) => {
                real.bind()?;
                // SAFETY: both ranges hold `bytes`. The source is pageable: the driver has read it when the call returns.
                real.check("copy to the GPU", unsafe {
                    (real.library.cuMemcpyHtoDAsync_v2)(
                        to.address + at as u64,
                        from.as_ptr().cast(),
                        bytes,
                        real.stream,
                    )
                })
            }
            #[cfg(test)]
            Machine::Emulated(_) => {
                // SAFETY: an emulated address is one of this process; both ranges hold `bytes`.
                unsafe { std::ptr::copy_nonoverlapping(from.as_ptr().cast(), (to.address as *mut u8).add(at), bytes) };
                Ok(())
            }
        }
    }

    /// Copies to the host when all that was launched before is done.
    ///
    /// # Errors
    /// More bytes than the buffer has; what the driver says, also of earlier launches.
    pub fn download<T: Plain>(&self, from: &Buffer, at: usize, to: &mut [T]) -> Result<()> {
        let bytes = std::mem::size_of_val(to);
        from.check_range(at, bytes)?;
        match &self.machine {
            Machine::Real(real) => {
                real.bind()?;
                if bytes > 0 {
                    // SAFETY: both ranges hold `bytes`, any bits are a `T`, and `to` is borrowed until the wait below.
                    real.check("copy from the GPU", unsafe {
                        (real.library.cuMemcpyDtoHAsync_v2)(
                            to.as_mut_ptr().cast(),
                            from.address + at as u64,
                            bytes,
                            real.stream,
                        )
                    })?;
                }
                self.wait()
            }
            #[cfg(test)]
            Machine::Emulated(_) => {
                // SAFETY: an emulated address is one of this process; both ranges hold `bytes`.
                unsafe {
                    std::ptr::copy_nonoverlapping((from.address as *const u8).add(at), to.as_mut_ptr().cast(), bytes)
                };
                Ok(())
            }
        }
    }

    /// Zeroes `bytes` from `at` on.
    ///
    /// # Errors
    /// More bytes than the buffer has; what the driver says.
    pub fn clear(&self, buffer: &Buffer, at: usize, bytes: usize) -> Result<()> {
        buffer.check_range(at, bytes)?;
        match &self.machine {
            Machine::Real(real) => {
                real.bind()?;
                // SAFETY: the range lies in the buffer.
                real.check("clear memory", unsafe {
                    (real.library.cuMemsetD8Async)(buffer.address + at as u64, 0, bytes, real.stream)
                })
            }
            #[cfg(test)]
            Machine::Emulated(_) => {
                // SAFETY: an emulated address is one of this process; the range lies in the buffer.
                unsafe { std::ptr::write_bytes((buffer.address as *mut u8).add(at), 0, bytes) };
                Ok(())
            }
        }
    }

    /// Returns when all that was launched is done.
    ///
    /// # Errors
    /// What the driver says of it.
    pub fn wait(&self) -> Result<()> {
        match &self.machine {
            Machine::Real(real) => {
                real.bind()?;
                // SAFETY: a stream of this context.
                real.check("wait for the GPU", unsafe { (real.library.cuStreamSynchronize)(real.stream) })
            }
            #[cfg(test)]
            Machine::Emulated(_) => Ok(()),
        }
    }

    /// Records what `launches` launches instead of running it; none where recording is not possible, which costs
    /// speed alone.
    ///
    /// # Errors
    /// What `launches` says.
    pub fn record(self: &Arc<Self>, launches: impl FnOnce() -> Result<()>) -> Result<Option<Recording>> {
        match &self.machine {
            Machine::Real(real) => {
                real.bind()?;
                // SAFETY: a stream of this context.
                if unsafe { (real.library.cuStreamBeginCapture_v2)(real.stream, CAPTURE_THREAD_LOCAL) } != 0 {
                    return Ok(None);
                }
                let launched = launches();
                let (mut graph, mut executable) = (null_mut(), null_mut());
                // SAFETY: ends what was begun, also after an error; the graph is destroyed once, the executable by
                // `Recording`.
                let status = unsafe {
                    let mut status = (real.library.cuStreamEndCapture)(real.stream, &raw mut graph);
                    if status == 0 {
                        status = (real.library.cuGraphInstantiateWithFlags)(&raw mut executable, graph, 0);
                        (real.library.cuGraphDestroy)(graph);
                    }
                    status
                };
                // An error inside a recording may be one of recording; the same launches then run unrecorded.
                if status != 0 || launched.is_err() {
                    return Ok(None);
                }
                Ok(Some(Recording { gpu: Arc::clone(self), executable }))
            }
            #[cfg(test)]
            Machine::Emulated(_) => {
                drop(launches);
                Ok(None)
            }
        }
    }
}

impl Recording {
    /// Runs it.
    ///
    /// # Errors
    /// What the driver says.
    pub fn replay(&self) -> Result<()> {
        match &self.gpu.machine {
            Machine::Real(real) => {
                real.bind()?;
                // SAFETY: an executable graph of this context; its owner keeps the buffers that it names.
                real.check("launch a recorded step", unsafe {
                    (real.library.cuGraphLaunch)(self.executable, real.stream)
                })
            }
            #[cfg(test)]
            Machine::Emulated(_) => Ok(()),
        }
    }
}

impl Drop for Recording {
    fn drop(&mut self) {
        match &self.gpu.machine {
            Machine::Real(real) => {
                // A failure here leaves memory to the end of the process.
                if self.gpu.wait().is_ok() {
                    // SAFETY: destroyed once, after its last launch has ended.
                    unsafe { (real.library.cuGraphExecDestroy)(self.executable) };
                }
            }
            #[cfg(test)]
            Machine::Emulated(_) => {}
        }
    }
}

impl Real {
    fn new(number: usize) -> Result<(Real, String), Missing> {
        let library = DriverLibrary::get()?;
        let names = devices()?;
        let Some(name) = names.get(number) else {
            return Err(format!("this machine has GPUs 0 to {}", names.len() - 1));
        };
        let check = |doing: &str, status: c_int| match status {
            0 => Ok(()),
            status => Err(format!("cannot {doing}: {}", library.reason(status))),
        };
        let (mut device, mut major, mut version) = (0, 0, 0);
        let (mut context, mut stream, mut module) = (null_mut(), null_mut(), null_mut());
        // SAFETY: the driver is initialised; every call writes one value of the declared type. The module's bytes are
        // static. The context is retained for the life of the process.
        unsafe {
            check("open the GPU", (library.cuDeviceGet)(&raw mut device, number as c_int))?;
            let capability = (library.cuDeviceGetAttribute)(&raw mut major, COMPUTE_CAPABILITY_MAJOR, device);
            check("ask for the GPU's generation", capability)?;
            if major < 8 {
                return Err(format!("`{name}` has compute capability {major}.x, expected at least 8.0"));
            }
            check("ask for the driver's version", (library.cuDriverGetVersion)(&raw mut version))?;
            check("open the GPU", (library.cuDevicePrimaryCtxRetain)(&raw mut context, device))?;
            check("use the GPU", (library.cuCtxSetCurrent)(context))?;
            check("make a stream", (library.cuStreamCreate)(&raw mut stream, NON_BLOCKING))?;
            check("load the kernels", (library.cuModuleLoadData)(&raw mut module, MODULE.as_ptr().cast()))?;
        }
        let cudnn = cudnn::Cudnn::new(stream)?;
        let full = format!(
            "cuda:{number} {name}, driver {}.{}, cuDNN {}",
            version / 1000,
            version % 1000 / 10,
            cudnn.version()
        );
        let functions = Mutex::new(HashMap::new());
        Ok((Real { library, context, stream, module, functions, cudnn: Mutex::new(cudnn) }, full))
    }

    /// Makes the context this thread's.
    pub(super) fn bind(&self) -> Result<()> {
        // SAFETY: a context that is never released.
        self.check("use the GPU", unsafe { (self.library.cuCtxSetCurrent)(self.context) })
    }

    fn check(&self, doing: &str, status: c_int) -> Result<()> {
        match status {
            0 => Ok(()),
            status => Err(Error::machine(format!("cannot {doing}: {}", self.library.reason(status)))),
        }
    }

    fn function(&self, kernel: &'static str, element: Option<Element>) -> Result<Handle> {
        let mut functions = self.functions.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(&function) = functions.get(&(kernel, element)) {
            return Ok(function as Handle);
        }
        let name = format!("{kernel}{}", element.map_or("", Element::suffix));
        let mut function = null_mut();
        let c_name = CString::new(name.clone()).map_err(|e| Error::machine(e.to_string()))?;
        // SAFETY: a loaded module and a NUL-terminated name.
        self.check(&format!("find the kernel `{name}`"), unsafe {
            (self.library.cuModuleGetFunction)(&raw mut function, self.module, c_name.as_ptr())
        })?;
        functions.insert((kernel, element), function as usize);
        Ok(function)
    }
}

/// Values that are nothing but their bytes.
///
/// # Safety
/// Every bit pattern must be a value, and there must be no padding.
pub unsafe trait Plain: Copy {}
// SAFETY: plain numbers.
unsafe impl Plain for u8 {}
// SAFETY: plain numbers.
unsafe impl Plain for u16 {}
// SAFETY: plain numbers.
unsafe impl Plain for u32 {}
// SAFETY: plain numbers.
unsafe impl Plain for u64 {}
// SAFETY: plain numbers.
unsafe impl Plain for i32 {}
// SAFETY: plain numbers.
unsafe impl Plain for f32 {}

/// Device memory, zero at first.
pub struct Buffer {
    gpu: Arc<Gpu>,
    address: Address,
    bytes: usize,
}

impl Buffer {
    /// `bytes` of zeros.
    ///
    /// # Errors
    /// Not enough memory: the message says how much was asked for and how much is free.
    pub fn new(gpu: &Arc<Gpu>, bytes: usize) -> Result<Buffer> {
        // An empty buffer has an address, too.
        let room = bytes.max(16);
        let address = match &gpu.machine {
            Machine::Real(real) => {
                let mut address = 0;
                real.bind()?;
                // SAFETY: the driver writes one address.
                match unsafe { (real.library.cuMemAlloc_v2)(&raw mut address, room) } {
                    OUT_OF_MEMORY => return Err(gpu.out_of_memory(bytes)),
                    status => real.check("allocate memory", status)?,
                }
                address
            }
            #[cfg(test)]
            Machine::Emulated(_) => super::emulation::allocate(room),
        };
        let buffer = Buffer { gpu: Arc::clone(gpu), address, bytes };
        gpu.clear(&buffer, 0, bytes)?;
        Ok(buffer)
    }

    /// Where it lies.
    pub fn address(&self) -> Address {
        self.address
    }

    /// How long it is.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    fn check_range(&self, at: usize, bytes: usize) -> Result<()> {
        if at.checked_add(bytes).is_some_and(|end| end <= self.bytes) {
            return Ok(());
        }
        Err(Error::machine(format!("{bytes} bytes at {at} of a buffer of {}", self.bytes)))
    }
}

impl Gpu {
    fn out_of_memory(&self, bytes: usize) -> Error {
        let mib = |bytes: usize| bytes >> 20;
        let free = self.memory().map_or_else(|_| "an unknown amount".into(), |(free, _)| format!("{} MiB", mib(free)));
        Error::stage(format!("the GPU's memory does not suffice: {} MiB asked for, {free} free", mib(bytes)))
            .hint("choose a smaller `batch_size`, or end what else runs on the GPU")
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        match &self.gpu.machine {
            Machine::Real(real) => {
                // Launches that use the buffer may still be queued. After a failure the process is about to end.
                if self.gpu.wait().is_ok() {
                    // SAFETY: allocated by this library, freed once, no longer in use.
                    unsafe { (real.library.cuMemFree_v2)(self.address) };
                }
            }
            #[cfg(test)]
            Machine::Emulated(_) => super::emulation::free(self.address, self.bytes.max(16)),
        }
    }
}
