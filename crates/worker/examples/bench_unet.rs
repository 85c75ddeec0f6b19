use atelier_worker::{torch::InferenceMode, unet::*, weights::*};
use std::{path::Path, time::Instant};
use tch::{Device, Kind, Tensor};
fn cpu() -> f64 {
    let t = std::fs::read_to_string("/proc/self/stat").unwrap();
    let v: Vec<&str> = t.rsplit(')').next().unwrap().split_whitespace().collect();
    (v[11].parse::<f64>().unwrap() + v[12].parse::<f64>().unwrap()) / 100.0
}
fn main() {
    let a: Vec<String> = std::env::args().collect();
    let folder = Path::new(&a[1]);
    tch::set_num_threads(std::env::var("OMP_NUM_THREADS").map_or(1, |v| v.parse().unwrap()));
    let _g = InferenceMode::enter();
    let start = Instant::now();
    let config = UNetConfig::open(&folder.join("config.json")).unwrap();
    let weights = Weights::open_folder(folder, "diffusion_pytorch_model", &LoadOptions::cpu()).unwrap();
    let unet = UNet2DCondition::load(&weights, &config).unwrap();
    weights.finish().unwrap();
    println!("load {:.2}", start.elapsed().as_secs_f64());
    let x = Tensor::randn([2, 4, 32, 32], (Kind::Float, Device::Cpu));
    let e = Tensor::randn([2, 77, 768], (Kind::Float, Device::Cpu));
    for _ in 0..a[2].parse().unwrap() {
        let (t, c) = (Instant::now(), cpu());
        let _y = unet.forward(&x, 500.0, &Conditions::text(&e)).unwrap();
        println!("rust step wall {:.3} cpu {:.3}", t.elapsed().as_secs_f64(), cpu() - c);
    }
    let s = std::fs::read_to_string("/proc/self/status").unwrap();
    for l in s.lines().filter(|l| l.starts_with("VmHWM") || l.starts_with("Rss")) {
        println!("{l}");
    }
}
