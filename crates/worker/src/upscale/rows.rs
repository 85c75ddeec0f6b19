//! `rows.raw`: the output's samples as they become ready. On disk, so that memory does not grow with the picture.
#![expect(unsafe_code, reason = "maps the file for the encoder")]

use std::{
    fs::{File, OpenOptions},
    io,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
};

use memmap2::{Advice, Mmap};
use rustix::fs::{FallocateFlags, fallocate};

use crate::{
    error::JobError,
    upscale::tiles::{Rect, Size},
};

pub const NAME: &str = "rows.raw";

pub struct Rows {
    path: PathBuf,
    file: File,
    width: u64,
    bytes_per_pixel: u64,
}

impl Rows {
    /// The file in `folder` for a picture of `size`, with what it already holds. Room on the disk is taken now, so that
    /// a full disk shows before hours of work and not after.
    pub fn open(folder: &Path, size: Size, bytes_per_pixel: usize) -> Result<Self, JobError> {
        let path = folder.join(NAME);
        let io = |error| JobError::Io { path: path.clone(), error };
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path).map_err(io)?;
        let bytes_per_pixel = bytes_per_pixel as u64;
        let bytes = u64::from(size.width) * u64::from(size.height) * bytes_per_pixel;
        file.set_len(bytes).map_err(io)?;
        match fallocate(&file, FallocateFlags::empty(), 0, bytes) {
            // Some file systems cannot; then a full disk shows at the write.
            Ok(()) | Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOSYS | rustix::io::Errno::INVAL) => {}
            Err(error) => return Err(io(error.into())),
        }
        Ok(Self { path, file, width: u64::from(size.width), bytes_per_pixel })
    }

    /// Whether `folder` has a file as large as this picture.
    pub fn exist(folder: &Path, size: Size, bytes_per_pixel: usize) -> bool {
        let bytes = u64::from(size.width) * u64::from(size.height) * bytes_per_pixel as u64;
        std::fs::metadata(folder.join(NAME)).is_ok_and(|meta| meta.len() == bytes)
    }

    /// Puts a tile into its place.
    pub fn write(&self, rect: Rect, samples: &[u8]) -> Result<(), JobError> {
        let length = rect.width() as usize * usize::try_from(self.bytes_per_pixel).unwrap_or(usize::MAX);
        for (y, row) in (rect.y0..rect.y1).zip(samples.chunks_exact(length)) {
            let offset = (u64::from(y) * self.width + u64::from(rect.x0)) * self.bytes_per_pixel;
            self.file.write_all_at(row, offset).map_err(|error| self.error(error))?;
        }
        Ok(())
    }

    pub fn sync(&self) -> Result<(), JobError> {
        self.file.sync_data().map_err(|error| self.error(error))
    }

    /// All of it. Nothing may be written while the map lives.
    pub fn map(&self) -> Result<Mmap, JobError> {
        // SAFETY: the job's folder is the job's own; nobody else writes or shortens the file.
        let map = unsafe { Mmap::map(&self.file) }.map_err(|error| self.error(error))?;
        // Only a hint: read once, from the top.
        let _ = map.advise(Advice::Sequential);
        Ok(map)
    }

    fn error(&self, error: io::Error) -> JobError {
        JobError::Io { path: self.path.clone(), error }
    }
}
