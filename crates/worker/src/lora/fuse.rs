//! LoRAs and the tensors of one component that they change.

use std::{collections::BTreeMap, rc::Rc};

use tch::{Device, Kind, Tensor};

use super::{
    Component, LoraError, LoraFile,
    file::Layer,
    keys::Name,
    names::{Place, Rows, places},
};
use crate::{
    torch::TorchError,
    weights::{Deltas, Weights},
};

/// A LoRA, and how strong it is.
#[derive(Clone)]
pub struct LoraUse {
    pub file: Rc<LoraFile>,
    pub denoiser_weight: f64,
    pub text_encoder_weight: f64,
}

impl LoraUse {
    const fn weight(&self, component: Component) -> f64 {
        match component {
            Component::Denoiser => self.denoiser_weight,
            Component::TextEncoder | Component::TextEncoder2 | Component::TextEncoder3 => self.text_encoder_weight,
        }
    }
}

/// What to give to [`Weights::set_deltas`].
pub struct Resolved {
    pub deltas: Rc<dyn Deltas>,
    /// Tensors that are changed.
    pub count: usize,
    /// What was left out, for the person who asked.
    pub warnings: Vec<String>,
}

/// A change to one tensor.
struct Change {
    file: Rc<LoraFile>,
    /// Index into the file's layers.
    layer: usize,
    scale: f64,
    /// Where the tensor has a part of the layer only.
    rows: Option<Rows>,
}

impl Change {
    fn layer(&self) -> &Layer {
        &self.file.layers[self.layer]
    }
}

struct Changes {
    by_tensor: BTreeMap<String, Vec<Change>>,
}

/// Finds the tensors of `weights`, which are the model's `component`, that the LoRAs change.
///
/// # Errors
/// A LoRA that changes what the denoiser does not have, or nothing of what a text encoder has, or tensors of another
/// shape. Where only some of a text encoder's tensors are not there, that is a warning.
pub fn resolve(loras: &[LoraUse], component: Component, weights: &Weights) -> Result<Resolved, LoraError> {
    let shapes = weights.shapes();
    let named = places(&shapes);
    let (mut by_tensor, mut warnings) = (BTreeMap::<String, Vec<Change>>::new(), Vec::new());
    for lora in loras {
        let (mut unknown, mut misshapen, mut fitting) = (Vec::new(), None, 0);
        let layers = lora.file.layers.iter().enumerate().filter(|(_, layer)| layer.component == component);
        for (index, layer) in layers {
            let found = find(&layer.name, weights, &shapes, &named);
            if found.is_empty() {
                unknown.push(layer.key.clone());
                continue;
            }
            if let Some(error) = found.iter().find_map(|place| check_shape(&lora.file, layer, place, &shapes).err()) {
                misshapen.get_or_insert(error);
                continue;
            }
            fitting += 1;
            let scale = layer.scale * lora.weight(component);
            for Place { module, rows } in found {
                let change = Change { file: lora.file.clone(), layer: index, scale, rows };
                by_tensor.entry(format!("{module}.weight")).or_default().push(change);
            }
        }
        if !unknown.is_empty() {
            let error = LoraError::Unknown { path: lora.file.path().into(), component, keys: unknown };
            if component == Component::Denoiser || fitting == 0 {
                return Err(error);
            }
            warnings.push(error.to_string());
        }
        if let Some(error) = misshapen {
            return Err(error);
        }
    }
    let count = by_tensor.len();
    Ok(Resolved { deltas: Rc::new(Changes { by_tensor }), count, warnings })
}

/// Where the layer's change belongs; nowhere where the model has no such module.
fn find(
    name: &Name,
    weights: &Weights,
    shapes: &BTreeMap<String, Vec<i64>>,
    named: &BTreeMap<String, Vec<Place>>,
) -> Vec<Place> {
    match name {
        Name::Kohya(module) => named.get(module).cloned().unwrap_or_default(),
        Name::Dotted(module) => {
            let tensor = weights.canonical(&format!("{module}.weight"));
            match tensor.strip_suffix(".weight").filter(|_| shapes.contains_key(&tensor)) {
                Some(module) => vec![Place { module: module.into(), rows: None }],
                // By the original code's names, which some write with their dots.
                None => named.get(&module.replace('.', "_")).cloned().unwrap_or_default(),
            }
        }
    }
}

fn check_shape(
    file: &LoraFile,
    layer: &Layer,
    place: &Place,
    shapes: &BTreeMap<String, Vec<i64>>,
) -> Result<(), LoraError> {
    let shape = shapes.get(&format!("{}.weight", place.module)).map(Vec::as_slice).unwrap_or_default();
    let rows = layer.up.size()[0];
    let rows = match &place.rows {
        Some(part) if part.of == rows => part.parts.iter().map(|part| part.end - part.start).sum(),
        Some(_) | None => rows,
    };
    let changes = [rows, layer.down.size()[1]];
    let has = [shape.first().copied().unwrap_or(0), shape.iter().skip(1).product()];
    if shape.len() >= 2 && changes == has {
        return Ok(());
    }
    Err(LoraError::Shape { path: file.path().into(), key: layer.key.clone(), changes, has: shape.into() })
}

impl Deltas for Changes {
    fn apply(&self, name: &str, weight: Tensor) -> Result<Tensor, TorchError> {
        let Some(changes) = self.by_tensor.get(name) else { return Ok(weight) };
        let device = weight.device();
        let mut sum: Option<Tensor> = None;
        for change in changes {
            let layer = change.layer();
            let up = match &change.rows {
                None => layer.up.shallow_clone(),
                Some(Rows { parts, .. }) => {
                    let parts = parts.iter().map(|part| layer.up.f_narrow(0, part.start, part.end - part.start));
                    Tensor::f_cat(&parts.collect::<Result<Vec<_>, _>>()?, 0)?
                }
            };
            let (up, down) = (on(&up, device)?, on(&layer.down, device)?);
            let product = up.f_matmul(&down)?.f_mul_scalar(change.scale)?;
            sum = Some(match sum {
                Some(sum) => sum.f_add(&product)?,
                None => product,
            });
        }
        match sum {
            Some(sum) => Ok(weight.f_add(&sum.f_view(weight.size().as_slice())?)?),
            None => Ok(weight),
        }
    }

    fn touches(&self, name: &str) -> bool {
        self.by_tensor.contains_key(name)
    }
}

fn on(tensor: &Tensor, device: Device) -> Result<Tensor, TorchError> {
    Ok(tensor.f_to_device_(device, Kind::Float, false, false)?)
}
