//! GGUF files, written byte by byte: whole ones, and such as nobody would write by mistake.
//!
//! Source of the layout: ggml's `docs/gguf.md`, version 3.

/// Where tensors begin: at multiples of this.
const ALIGNMENT: usize = 32;

/// A value beside the tensors.
#[derive(Clone, Debug)]
pub enum Value {
    Text(String),
    Number(u32),
    Sides(Vec<i32>),
}

/// A tensor as the file is to have it, whether it makes sense or not.
#[derive(Clone, Debug)]
pub struct Tensor {
    pub name: String,
    /// The innermost side first, as in the file.
    pub sides: Vec<u64>,
    /// ggml's number of the type.
    pub kind: u32,
    pub data: Vec<u8>,
    /// Where it is said to lie; after the tensor before, if nothing is said.
    pub offset: Option<u64>,
}

impl Tensor {
    pub fn new(name: &str, sides: &[u64], kind: u32, data: Vec<u8>) -> Self {
        Self { name: name.into(), sides: sides.into(), kind, data, offset: None }
    }

    /// In f32.
    pub fn floats(name: &str, sides: &[u64], values: &[f32]) -> Self {
        Self::new(name, sides, 0, values.iter().flat_map(|value| value.to_le_bytes()).collect())
    }
}

/// A file, as its bytes are to be.
#[derive(Clone, Debug)]
pub struct File {
    pub version: u32,
    pub values: Vec<(String, Value)>,
    pub tensors: Vec<Tensor>,
    /// How many there are said to be; as many as there are, if nothing is said.
    pub tensor_count: Option<u64>,
    pub value_count: Option<u64>,
}

impl File {
    pub fn new(architecture: &str, tensors: Vec<Tensor>) -> Self {
        let values = vec![("general.architecture".into(), Value::Text(architecture.into()))];
        Self { version: 3, values, tensors, tensor_count: None, value_count: None }
    }

    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = b"GGUF".to_vec();
        bytes.extend(self.version.to_le_bytes());
        bytes.extend(self.tensor_count.unwrap_or(self.tensors.len() as u64).to_le_bytes());
        bytes.extend(self.value_count.unwrap_or(self.values.len() as u64).to_le_bytes());
        for (key, value) in &self.values {
            put_text(&mut bytes, key);
            put_value(&mut bytes, value);
        }
        let mut data = Vec::new();
        for tensor in &self.tensors {
            put_text(&mut bytes, &tensor.name);
            bytes.extend(u32::try_from(tensor.sides.len()).unwrap_or(u32::MAX).to_le_bytes());
            bytes.extend(tensor.sides.iter().flat_map(|side| side.to_le_bytes()));
            bytes.extend(tensor.kind.to_le_bytes());
            bytes.extend(tensor.offset.unwrap_or(data.len() as u64).to_le_bytes());
            data.extend(&tensor.data);
            data.resize(data.len().next_multiple_of(ALIGNMENT), 0);
        }
        bytes.resize(bytes.len().next_multiple_of(ALIGNMENT), 0);
        bytes.extend(data);
        bytes
    }
}

fn put_text(bytes: &mut Vec<u8>, text: &str) {
    bytes.extend((text.len() as u64).to_le_bytes());
    bytes.extend(text.as_bytes());
}

fn put_value(bytes: &mut Vec<u8>, value: &Value) {
    match value {
        Value::Text(text) => {
            bytes.extend(8_u32.to_le_bytes());
            put_text(bytes, text);
        }
        Value::Number(number) => {
            bytes.extend(4_u32.to_le_bytes());
            bytes.extend(number.to_le_bytes());
        }
        Value::Sides(sides) => {
            bytes.extend([9_u32, 5].iter().flat_map(|kind| kind.to_le_bytes()));
            bytes.extend((sides.len() as u64).to_le_bytes());
            bytes.extend(sides.iter().flat_map(|side| side.to_le_bytes()));
        }
    }
}
