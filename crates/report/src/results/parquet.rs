//! Rows as a Parquet file: columns of optional values, row groups of a few megabytes, compressed
//! with Snappy, which every reader supports.

use std::io::{self, Write};
use std::sync::Arc;

use parquet::basic::{Compression, LogicalType, Repetition, Type as Physical};
use parquet::data_type::{BoolType, ByteArray, ByteArrayType, DoubleType, Int64Type};
use parquet::file::properties::WriterProperties;
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::types::Type;

use super::columns::{CellValue, ColumnKind};

/// Rows and bytes that are buffered before they are written as a row group.
const GROUP_ROWS: usize = 20_000;
const GROUP_BYTES: usize = 16 << 20;

/// Present values of a column, and per row its definition level (1: present).
enum ParquetColumn {
    Text(Vec<ByteArray>, Vec<i16>),
    Number(Vec<i64>, Vec<i16>),
    Float(Vec<f64>, Vec<i16>),
    Bool(Vec<bool>, Vec<i16>),
}

impl ParquetColumn {
    fn empty(kind: ColumnKind) -> Self {
        match kind {
            ColumnKind::Text => Self::Text(Vec::new(), Vec::new()),
            ColumnKind::Number => Self::Number(Vec::new(), Vec::new()),
            ColumnKind::Float => Self::Float(Vec::new(), Vec::new()),
            ColumnKind::Bool => Self::Bool(Vec::new(), Vec::new()),
        }
    }

    fn add(&mut self, value: CellValue) {
        match (self, value) {
            (Self::Text(texts, present), CellValue::Text(text)) => {
                present.push(i16::from(text.is_some()));
                texts.extend(text.map(|text| ByteArray::from(text.into_bytes())));
            }
            (Self::Number(numbers, present), CellValue::Number(number)) => {
                present.push(i16::from(number.is_some()));
                numbers.extend(number);
            }
            (Self::Float(numbers, present), CellValue::Float(number)) => {
                present.push(i16::from(number.is_some()));
                numbers.extend(number);
            }
            (Self::Bool(truths, present), CellValue::Bool(truth)) => {
                present.push(i16::from(truth.is_some()));
                truths.extend(truth);
            }
            (
                Self::Text(_, present)
                | Self::Number(_, present)
                | Self::Float(_, present)
                | Self::Bool(_, present),
                _,
            ) => present.push(0),
        }
    }
}

pub struct ParquetWriter<W: Write + Send> {
    file: SerializedFileWriter<W>,
    kinds: Vec<ColumnKind>,
    columns: Vec<ParquetColumn>,
    rows: usize,
    bytes: usize,
}

impl<W: Write + Send> ParquetWriter<W> {
    pub(super) fn new(file: W, header: Vec<(String, ColumnKind)>) -> io::Result<Self> {
        let fields = header.iter().map(|(name, kind)| {
            let of = |physical| Type::primitive_type_builder(name, physical);
            let builder = match kind {
                ColumnKind::Text => {
                    of(Physical::BYTE_ARRAY).with_logical_type(Some(LogicalType::String))
                }
                ColumnKind::Number => of(Physical::INT64),
                ColumnKind::Float => of(Physical::DOUBLE),
                ColumnKind::Bool => of(Physical::BOOLEAN),
            };
            builder.with_repetition(Repetition::OPTIONAL).build().map(Arc::new)
        });
        let fields = fields.collect::<Result<Vec<_>, _>>()?;
        let schema = Type::group_type_builder("outcome").with_fields(fields).build()?;
        let properties = WriterProperties::builder().set_compression(Compression::SNAPPY).build();
        let file = SerializedFileWriter::new(file, Arc::new(schema), Arc::new(properties))?;
        let kinds: Vec<_> = header.into_iter().map(|(_, kind)| kind).collect();
        Ok(Self { file, columns: empty(&kinds), kinds, rows: 0, bytes: 0 })
    }

    pub(super) fn add(&mut self, row: Vec<CellValue>) -> io::Result<()> {
        self.bytes += row.iter().map(CellValue::size).sum::<usize>();
        for (column, value) in self.columns.iter_mut().zip(row) {
            column.add(value);
        }
        self.rows += 1;
        if self.rows >= GROUP_ROWS || self.bytes >= GROUP_BYTES {
            self.write_group()
        } else {
            Ok(())
        }
    }

    pub(super) fn finish(mut self) -> io::Result<()> {
        self.write_group()?;
        self.file.close()?;
        Ok(())
    }

    fn write_group(&mut self) -> io::Result<()> {
        if self.rows == 0 {
            return Ok(());
        }
        (self.rows, self.bytes) = (0, 0);
        let mut group = self.file.next_row_group()?;
        for column in std::mem::replace(&mut self.columns, empty(&self.kinds)) {
            let Some(mut writer) = group.next_column()? else { break };
            match column {
                ParquetColumn::Text(values, present) => {
                    writer.typed::<ByteArrayType>().write_batch(&values, Some(&present), None)?
                }
                ParquetColumn::Number(values, present) => {
                    writer.typed::<Int64Type>().write_batch(&values, Some(&present), None)?
                }
                ParquetColumn::Float(values, present) => {
                    writer.typed::<DoubleType>().write_batch(&values, Some(&present), None)?
                }
                ParquetColumn::Bool(values, present) => {
                    writer.typed::<BoolType>().write_batch(&values, Some(&present), None)?
                }
            };
            writer.close()?;
        }
        group.close()?;
        Ok(())
    }
}

fn empty(kinds: &[ColumnKind]) -> Vec<ParquetColumn> {
    kinds.iter().map(|kind| ParquetColumn::empty(*kind)).collect()
}
