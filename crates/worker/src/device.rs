//! Where to compute, and why there.

use std::{fs, path::Path, str::FromStr};

use atelier_domain::protocol;
use serde_json::Value;
use tch::{Cuda, Device};

use crate::torch;

/// What was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wish {
    Auto,
    Cpu,
    Cuda(u32),
}

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum DeviceError {
    #[error("{0:?} is no device: write \"auto\", \"cpu\" or \"cuda:N\"")]
    Unknown(String),
    #[error("cuda:{index} cannot be used: {reason}")]
    Unusable { index: u32, reason: String },
}

impl FromStr for Wish {
    type Err = DeviceError;

    fn from_str(text: &str) -> Result<Self, DeviceError> {
        match text {
            "auto" => Ok(Self::Auto),
            "cpu" => Ok(Self::Cpu),
            "cuda" => Ok(Self::Cuda(0)),
            _ => text
                .strip_prefix("cuda:")
                .and_then(|index| index.parse().ok())
                .map(Self::Cuda)
                .ok_or_else(|| DeviceError::Unknown(text.into())),
        }
    }
}

/// The device for this process.
#[derive(Debug)]
pub struct Chosen {
    pub device: Device,
    pub facts: protocol::Device,
}

impl Chosen {
    /// Bytes that models may hold where nobody says: half of the device's memory.
    pub const fn default_budget(&self) -> u64 {
        self.facts.memory_bytes / 2
    }
}

/// Chooses the device and sets the number of threads; 0 means all cores. Before any other call of torch.
///
/// # Errors
/// A device that was asked for by name and is not there. `auto` always finds one.
pub fn choose(wish: Wish, threads: u32) -> Result<Chosen, DeviceError> {
    let cuda = match wish {
        Wish::Cpu => None,
        Wish::Auto => Some(0),
        Wish::Cuda(index) => Some(index),
    };
    let cuda = cuda.map(|index| usable_cuda(index).map(|memory| (index, memory)));
    let threads = set_threads(threads);
    match (cuda, wish) {
        (Some(Ok((index, memory_bytes))), _) => Ok(Chosen {
            device: Device::Cuda(index as usize),
            facts: protocol::Device {
                name: format!("cuda:{index}"),
                model: torch::cuda_name(index).unwrap_or_default(),
                threads,
                memory_bytes,
                reason: match wish {
                    Wish::Auto => "An NVIDIA card with a driver is there.".into(),
                    Wish::Cpu | Wish::Cuda(_) => "The configuration asks for it.".into(),
                },
            },
        }),
        (Some(Err(reason)), Wish::Cuda(index)) => Err(DeviceError::Unusable { index, reason }),
        (Some(Err(reason)), _) => Ok(cpu(threads, format!("No CUDA: {reason}."))),
        (None, _) => Ok(cpu(threads, "The configuration asks for it.".into())),
    }
}

/// The memory of a CUDA device that works.
fn usable_cuda(index: u32) -> Result<u64, String> {
    torch::load_cuda()?;
    let count = Cuda::device_count();
    if !Cuda::is_available() || count < 1 {
        return Err("libtorch finds no card that it can use".into());
    }
    if i64::from(index) >= count {
        return Err(format!("there are {count} cards, numbered from 0"));
    }
    torch::exact_cuda().map_err(|error| error.to_string())?;
    torch::accelerator_memory(index).map(|(_, total)| total).map_err(|error| error.to_string())
}

fn set_threads(threads: u32) -> u32 {
    let all = std::thread::available_parallelism().map_or(1, |n| u32::try_from(n.get()).unwrap_or(1));
    let threads = if threads == 0 { all } else { threads };
    tch::set_num_threads(i32::try_from(threads).unwrap_or(1));
    threads
}

fn cpu(threads: u32, reason: String) -> Chosen {
    let facts =
        protocol::Device { name: "cpu".into(), model: cpu_model(), threads, memory_bytes: memory_bytes(), reason };
    Chosen { device: Device::Cpu, facts }
}

fn cpu_model() -> String {
    let text = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("model name"));
    line.and_then(|rest| rest.split_once(':')).map(|(_, name)| name.trim().to_owned()).unwrap_or_default()
}

/// What this process may use: the machine's memory, or what its control group allows.
fn memory_bytes() -> u64 {
    let info = rustix::system::sysinfo();
    let machine = info.totalram.saturating_mul(u64::from(info.mem_unit));
    control_group_limit(Path::new("/proc/self/cgroup"), Path::new("/sys/fs/cgroup")).map_or(machine, |n| n.min(machine))
}

/// The smallest `memory.max` on the way from this process's group to the root.
fn control_group_limit(membership: &Path, root: &Path) -> Option<u64> {
    let text = fs::read_to_string(membership).ok()?;
    let group = text.lines().find_map(|line| line.strip_prefix("0::/"))?;
    Path::new(group)
        .ancestors()
        .filter_map(|group| fs::read_to_string(root.join(group).join("memory.max")).ok())
        .filter_map(|limit| limit.trim().parse().ok())
        .min()
}

/// libtorch and the device, for `atelier doctor`.
pub fn probe(chosen: &Chosen) -> Value {
    serde_json::json!({
        "worker_version": env!("CARGO_PKG_VERSION"),
        "protocol": protocol::PROTOCOL_VERSION,
        "libtorch": torch::version(),
        "fused_convolution": torch::has_fused_convolution(),
        "device": chosen.facts,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wishes_are_auto_cpu_or_a_numbered_card() {
        for (text, wish) in
            [("auto", Wish::Auto), ("cpu", Wish::Cpu), ("cuda", Wish::Cuda(0)), ("cuda:3", Wish::Cuda(3))]
        {
            assert_eq!(text.parse(), Ok(wish));
        }
        for text in ["", "gpu", "cuda:", "cuda:-1", "cuda:x", "CPU"] {
            assert_eq!(text.parse::<Wish>(), Err(DeviceError::Unknown(text.into())));
        }
    }

    #[test]
    fn the_tightest_control_group_limits_memory() {
        let root = tempfile::tempdir().expect("a folder");
        let group = root.path().join("system.slice/atelier.service");
        fs::create_dir_all(&group).expect("folders");
        fs::write(group.join("memory.max"), "max\n").expect("written");
        fs::write(root.path().join("system.slice/memory.max"), "1000\n").expect("written");
        let membership = root.path().join("cgroup");
        fs::write(&membership, "0::/system.slice/atelier.service\n").expect("written");
        assert_eq!(control_group_limit(&membership, root.path()), Some(1000));
        fs::write(group.join("memory.max"), "500\n").expect("written");
        assert_eq!(control_group_limit(&membership, root.path()), Some(500));
        assert_eq!(control_group_limit(&root.path().join("none"), root.path()), None);
    }
}
