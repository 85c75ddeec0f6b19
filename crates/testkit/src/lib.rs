//! What the tests of the daemon and of its workers share.
//!
//! - the program `atelier-fake-worker`: speaks the worker protocol without libtorch, and misbehaves on demand
//! - [`driver`]: starts a worker the way the daemon does and talks to it, synchronously
//! - [`conformance`]: what every worker must do, the stand-in and the real one alike
//! - [`daemon`]: starts the real `atelier serve` on folders of its own and looks at it from outside
//! - [`disk`]: small disks that can be full
//! - [`gguf`]: GGUF files of any bytes, whole and damaged
//! - [`pictures`]: small pictures that are the same on every machine
//!
//! Nothing here links libtorch or knows the daemon's insides. A broken expectation panics: this is for tests.

pub mod conformance;
pub mod daemon;
pub mod disk;
pub mod driver;
pub mod exif;
pub mod gguf;
pub mod pictures;
pub mod wait;
