//! The libraries of this process: `gemm`, `matrixmultiply` and OpenBLAS.

use crate::problem::Problem;
use crate::shapes::Layout;
use crate::timing::{Function, Sampler};
use core::ffi::{CStr, c_char, c_int};
use libloading::{Library, Symbol};
use std::path::Path;

/// Starts the threads that `gemm` uses, of which the caller is one.
///
/// # Errors
/// If there are such threads already.
pub fn start_threads(threads: usize) -> Result<(), String> {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).use_current_thread();
    pool.build_global().map_err(|e| e.to_string())
}

/// The `gemm` crate, on `threads` threads of rayon's.
#[expect(unsafe_code, reason = "it takes pointers")]
pub fn gemm(problem: &Problem, threads: usize) -> Box<dyn Sampler + '_> {
    let parallelism = match threads {
        1 => gemm::Parallelism::None,
        threads => gemm::Parallelism::Rayon(threads),
    };
    let product = &problem.product;
    let (m, n, k) = (product.m, product.n, product.k);
    let ((a_row, a_col), (b_row, b_col)) = (problem.a_strides(), problem.b_strides());
    Box::new(Function(move |c: &mut [f32]| {
        assert_eq!(c.len(), m * n);
        // SAFETY: A, B and C have as many elements as their shapes and strides span, C is
        // exclusive, and it is not read.
        unsafe {
            gemm::gemm(
                m,
                n,
                k,
                c.as_mut_ptr(),
                1,
                n.cast_signed(),
                false,
                problem.a.as_ptr(),
                a_col,
                a_row,
                problem.b.as_ptr(),
                b_col,
                b_row,
                0.0,
                1.0,
                false,
                false,
                false,
                parallelism,
            );
        }
    }))
}

/// The `matrixmultiply` crate, on as many threads as `MATMUL_NUM_THREADS` says.
#[expect(unsafe_code, reason = "it takes pointers")]
pub fn matrixmultiply(problem: &Problem) -> Box<dyn Sampler + '_> {
    let product = &problem.product;
    let (m, n, k) = (product.m, product.n, product.k);
    let ((a_row, a_col), (b_row, b_col)) = (problem.a_strides(), problem.b_strides());
    Box::new(Function(move |c: &mut [f32]| {
        assert_eq!(c.len(), m * n);
        let (a, b) = (problem.a.as_ptr(), problem.b.as_ptr());
        let (c, row) = (c.as_mut_ptr(), n.cast_signed());
        // SAFETY: as for `gemm`.
        unsafe {
            matrixmultiply::sgemm(m, k, n, 1.0, a, a_row, a_col, b, b_row, b_col, 0.0, c, row, 1);
        }
    }))
}

/// `cblas_sgemm`.
type Sgemm = unsafe extern "C" fn(
    c_int,
    c_int,
    c_int,
    c_int,
    c_int,
    c_int,
    f32,
    *const f32,
    c_int,
    *const f32,
    c_int,
    f32,
    *mut f32,
    c_int,
);

/// OpenBLAS, loaded from a file.
pub struct OpenBlas {
    sgemm: Sgemm,
    /// Its version, how it was built, and for which CPU it takes this one.
    pub description: String,
    /// Keeps the code where it is.
    _library: Library,
}

impl OpenBlas {
    /// Loads the library and tells it how many threads to use.
    ///
    /// # Errors
    /// If there is no such file, or it is not OpenBLAS.
    #[expect(unsafe_code, reason = "what a library does when it is loaded, only its maker knows")]
    pub fn load(path: &Path, threads: usize) -> Result<Self, String> {
        let told = |e: libloading::Error| format!("--openblas {}: {e}", path.display());
        // SAFETY: OpenBLAS starts its threads and reads its environment, and no more.
        let library = unsafe { Library::new(path) }.map_err(told)?;
        // The build for Python puts a prefix before all names.
        // SAFETY: the name is looked for, not used.
        let plain = unsafe { library.get::<Sgemm>("cblas_sgemm") }.is_ok();
        let prefix = if plain { "" } else { "scipy_" };
        let name = |of: &str| format!("{prefix}{of}");
        // SAFETY: these are the types in OpenBLAS's cblas.h, with its integers of 32 bits. The
        // texts are static.
        unsafe {
            let sgemm: Symbol<'_, Sgemm> = library.get(name("cblas_sgemm")).map_err(told)?;
            let set: Symbol<'_, unsafe extern "C" fn(c_int)> =
                library.get(name("openblas_set_num_threads")).map_err(told)?;
            let text = |of: &str| -> Result<String, String> {
                let get: Symbol<'_, unsafe extern "C" fn() -> *const c_char> =
                    library.get(name(of)).map_err(told)?;
                Ok(CStr::from_ptr(get()).to_string_lossy().into_owned())
            };
            set(c_int::try_from(threads).unwrap_or(1));
            let config = text("openblas_get_config")?;
            let description = format!("{config}, kernels of {}", text("openblas_get_corename")?);
            Ok(Self { sgemm: *sgemm, description, _library: library })
        }
    }

    /// A product.
    ///
    /// # Panics
    /// If a size does not fit in a C integer.
    #[expect(unsafe_code, reason = "it takes pointers")]
    pub fn product<'a>(&'a self, problem: &'a Problem) -> Box<dyn Sampler + 'a> {
        const ROW_MAJOR: c_int = 101;
        let int = |n: usize| c_int::try_from(n).expect("sizes fit in C integers");
        let product = &problem.product;
        let operand = |layout, rows, cols| match layout {
            Layout::Plain => (111, int(cols)),
            Layout::Transposed => (112, int(rows)),
        };
        let (m, n, k) = (int(product.m), int(product.n), int(product.k));
        let (a_how, a_lead) = operand(product.a, product.m, product.k);
        let (b_how, b_lead) = operand(product.b, product.k, product.n);
        Box::new(Function(move |c: &mut [f32]| {
            assert_eq!(c.len(), problem.product.m * problem.product.n);
            let (a, b) = (problem.a.as_ptr(), problem.b.as_ptr());
            let c = c.as_mut_ptr();
            // SAFETY: as for `gemm`; a leading dimension is the length of a row in memory.
            unsafe {
                (self.sgemm)(
                    ROW_MAJOR, a_how, b_how, m, n, k, 1.0, a, a_lead, b, b_lead, 0.0, c, n,
                );
            }
        }))
    }
}
