//! Latents as a sequence of 2 x 2 patches, as FLUX and Qwen-Image take them.

use tch::{Device, Kind, Tensor};

use crate::torch::TorchError;

/// The side of a patch.
pub const PATCH: i64 = 2;

/// (B, C, h, w) of even sides → (B, h / 2 · w / 2, 4 · C): rows of patches, the patch's own two sides last.
pub fn pack(latents: &Tensor) -> Result<Tensor, TorchError> {
    let (batch, channels, height, width) = latents.size4()?;
    if height % PATCH != 0 || width % PATCH != 0 {
        return Err(TorchError::Other(format!("latents of {height} x {width} are no whole patches")));
    }
    let (rows, columns) = (height / PATCH, width / PATCH);
    let split = latents.f_reshape([batch, channels, rows, PATCH, columns, PATCH])?;
    Ok(split.f_permute([0, 2, 4, 1, 3, 5])?.f_reshape([batch, rows * columns, channels * PATCH * PATCH])?)
}

/// Back from [`pack`]; `height` and `width` are the latents'.
pub fn unpack(tokens: &Tensor, height: i64, width: i64) -> Result<Tensor, TorchError> {
    let (batch, length, features) = tokens.size3()?;
    let (rows, columns, channels) = (height / PATCH, width / PATCH, features / (PATCH * PATCH));
    if rows * columns != length {
        return Err(TorchError::Other(format!("{length} patches are not latents of {height} x {width}")));
    }
    let split = tokens.f_reshape([batch, rows, columns, channels, PATCH, PATCH])?;
    Ok(split.f_permute([0, 3, 1, 4, 2, 5])?.f_reshape([batch, channels, height, width])?)
}

/// What a last layer gives as (B, h / p · w / p, p · p · C), each patch's channels last → (B, C, h, w). Unlike [`unpack`]'s
/// tokens, which have the channels first.
pub fn unpatch(tokens: &Tensor, patch: i64, [height, width]: [i64; 2]) -> Result<Tensor, TorchError> {
    let (batch, _, features) = tokens.size3()?;
    let (rows, columns, channels) = (height / patch, width / patch, features / (patch * patch));
    let split = tokens.f_reshape([batch, rows, columns, patch, patch, channels])?;
    Ok(split.f_permute([0, 5, 1, 3, 2, 4])?.f_reshape([batch, channels, height, width])?)
}

/// The places of so many patches out of a square table that has `side` a side, from `corner`, row and column, on.
///
/// `table` (1, side · side, D) → (1, rows · columns, D)
///
/// # Errors
/// More patches than there are places.
pub fn cropped(
    table: &Tensor,
    side: i64,
    [rows, columns]: [i64; 2],
    [top, left]: [i64; 2],
) -> Result<Tensor, TorchError> {
    if rows > side || columns > side {
        return Err(TorchError::Other(format!(
            "{columns} x {rows} patches, and the model has places for {side} x {side}"
        )));
    }
    let features = table.size3()?.2;
    let square = table.f_reshape([1, side, side, features])?;
    let crop = square.f_narrow(1, top, rows)?.f_narrow(2, left, columns)?;
    Ok(crop.f_reshape([1, rows * columns, features])?)
}

/// Positions of the patches of latents, (h / 2 · w / 2, 3): `first`, row, column.
pub fn positions(height: i64, width: i64, first: i64) -> Result<Tensor, TorchError> {
    let (rows, columns) = (height / PATCH, width / PATCH);
    let options = (Kind::Int64, Device::Cpu);
    let row = Tensor::f_arange(rows, options)?.f_unsqueeze(1)?.f_expand([rows, columns], false)?;
    let column = Tensor::f_arange(columns, options)?.f_unsqueeze(0)?.f_expand([rows, columns], false)?;
    let first = Tensor::f_full([rows, columns], first, options)?;
    Ok(Tensor::f_stack(&[first, row, column], -1)?.f_reshape([rows * columns, 3])?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patches_come_row_by_row_and_go_back() -> Result<(), TorchError> {
        let latents = Tensor::arange(2 * 4 * 6, (Kind::Int64, Device::Cpu)).f_reshape([1, 2, 4, 6])?;
        let tokens = pack(&latents)?;
        assert_eq!(tokens.size(), [1, 6, 8]);
        let token = Vec::<i64>::try_from(tokens.get(0).get(1))?;
        assert_eq!(token, [2, 3, 8, 9, 26, 27, 32, 33]);
        assert_eq!(unpack(&tokens, 4, 6)?, latents);
        assert_eq!(Vec::<i64>::try_from(positions(4, 6, 1)?.get(5))?, [1, 1, 2]);
        assert!(pack(&latents.narrow(2, 0, 3)).is_err() && unpack(&tokens, 6, 6).is_err());
        Ok(())
    }

    #[test]
    fn a_last_layers_patches_have_their_channels_last() -> Result<(), TorchError> {
        let latents = Tensor::arange(2 * 4 * 6, (Kind::Int64, Device::Cpu)).f_reshape([1, 2, 4, 6])?;
        let last = pack(&latents)?.f_reshape([1, 6, 2, 2, 2])?.f_permute([0, 1, 3, 4, 2])?.f_reshape([1, 6, 8])?;
        assert_eq!(unpatch(&last, 2, [4, 6])?, latents);
        Ok(())
    }

    #[test]
    fn a_table_of_places_is_cropped() -> Result<(), TorchError> {
        let table = Tensor::arange(25, (Kind::Int64, Device::Cpu)).f_reshape([1, 25, 1])?;
        let crop = cropped(&table, 5, [2, 3], [1, 1])?;
        assert_eq!(Vec::<i64>::try_from(crop.flatten(0, -1))?, [6, 7, 8, 11, 12, 13]);
        let error = cropped(&table, 5, [6, 3], [0, 0]).expect_err("6 rows of 5").to_string();
        assert_eq!(error, "3 x 6 patches, and the model has places for 5 x 5");
        Ok(())
    }
}
