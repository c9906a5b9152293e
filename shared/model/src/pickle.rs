//! A reader of the pickles that hold state dictionaries.
//!
//! A pickle is a program; this interpreter knows the instructions that state dictionaries need and three kinds of
//! Python object, all of them plain data here. It must never execute, import or look up anything: everything else is
//! refused by name. Work is bounded by the pickle's length, since every instruction consumes a byte of it and adds at
//! most one value.

use std::{collections::HashMap, rc::Rc};

use crate::{error::FormatError, tensor::Dtype};

/// A value on the interpreter's stack. Containers are shared because the memo and the stack refer to one object.
#[derive(Clone, Debug)]
pub(crate) enum Value {
    None,
    Bool,
    Int(i64),
    Text(Rc<str>),
    /// Items, and how deep tuples nest in them.
    Tuple(Rc<[Value]>, usize),
    /// Index into [`Machine::dictionaries`].
    Dictionary(usize),
    Storage(Rc<Storage>),
    Tensor(Rc<TensorRecord>),
    Global(Global),
    Mark,
}

/// A named block of elements: one file of the archive.
#[derive(Debug)]
pub(crate) struct Storage {
    pub(crate) key: Rc<str>,
    pub(crate) dtype: Dtype,
    pub(crate) elements: i64,
}

/// A view on a storage; numbers are as the file says, unchecked.
#[derive(Debug)]
pub(crate) struct TensorRecord {
    pub(crate) storage: Rc<Storage>,
    pub(crate) offset: i64,
    pub(crate) shape: Vec<i64>,
    pub(crate) strides: Vec<i64>,
}

/// The Python objects that state dictionaries name.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Global {
    RebuildTensor,
    OrderedDict,
    Storage(Dtype),
}

impl Global {
    fn find(module: &str, name: &str) -> Result<Self, FormatError> {
        Ok(match (module, name) {
            ("torch._utils", "_rebuild_tensor_v2") => Self::RebuildTensor,
            ("collections", "OrderedDict") => Self::OrderedDict,
            ("torch", "FloatStorage") => Self::Storage(Dtype::F32),
            ("torch", "HalfStorage") => Self::Storage(Dtype::F16),
            ("torch", "BFloat16Storage") => Self::Storage(Dtype::BF16),
            ("torch", "DoubleStorage") => Self::Storage(Dtype::F64),
            ("torch", "LongStorage") => Self::Storage(Dtype::I64),
            _ => {
                let name: String = format!("{module}.{name}").chars().take(120).collect();
                return Err(FormatError::Global(name));
            }
        })
    }
}

/// Tuples of state dictionaries nest three deep; the bound keeps a hostile file from exhausting the call stack.
const DEEPEST_TUPLE: usize = 8;

/// The most dimensions that torch gives a tensor.
const MOST_DIMENSIONS: usize = 64;

type Entries = Vec<(Value, Value)>;

struct Machine<'a> {
    bytes: &'a [u8],
    position: usize,
    stack: Vec<Value>,
    memo: HashMap<u32, Value>,
    dictionaries: Vec<Entries>,
}

/// The tensors of a pickled state dictionary in the order of the file.
pub(crate) fn state_dictionary(bytes: &[u8]) -> Result<Vec<(String, Rc<TensorRecord>)>, FormatError> {
    let mut machine = Machine { bytes, position: 0, stack: Vec::new(), memo: HashMap::new(), dictionaries: Vec::new() };
    let Value::Dictionary(top) = machine.run()? else {
        return Err(machine.damaged("it holds no dictionary of tensors"));
    };
    let entries = std::mem::take(&mut machine.dictionaries[top]);
    let mut tensors = Vec::new();
    for (key, value) in entries {
        let Value::Text(key) = key else { return Err(machine.damaged("a tensor's name is not a text")) };
        let Value::Tensor(tensor) = value else {
            let problem = "is not a tensor; a file of weights alone is needed, not a whole checkpoint".to_owned();
            return Err(FormatError::Tensor { tensor: key.to_string(), problem });
        };
        tensors.push((key.to_string(), tensor));
    }
    Ok(tensors)
}

impl<'a> Machine<'a> {
    fn damaged(&self, problem: &str) -> FormatError {
        FormatError::Pickle { position: self.position, problem: problem.to_owned() }
    }

    fn run(&mut self) -> Result<Value, FormatError> {
        loop {
            let position = self.position;
            match self.byte()? {
                b'.' => return self.pop(),
                opcode => self.execute(opcode, position)?,
            }
        }
    }

    /// One instruction of protocols 0 to 2, by the names of Python's `pickletools` in comments.
    fn execute(&mut self, opcode: u8, position: usize) -> Result<(), FormatError> {
        let value = match opcode {
            // PROTO
            0x80 => {
                return match self.byte()? {
                    0..=2 => Ok(()),
                    version => Err(self.damaged(&format!("protocol {version}; torch writes 2"))),
                };
            }
            // BUILD, BINPUT, LONG_BINPUT, SETITEM, SETITEMS: these change what is there and push nothing.
            b'b' => return self.build(),
            b'q' | b'r' => return self.put(opcode == b'r'),
            b's' => {
                let (value, key) = (self.pop()?, self.pop()?);
                return self.set_items(vec![key, value]);
            }
            b'u' => {
                let items = self.pop_to_mark()?;
                return self.set_items(items);
            }
            // EMPTY_DICT, EMPTY_TUPLE, MARK, NONE, NEWTRUE, NEWFALSE
            b'}' => self.new_dictionary(),
            b')' => self.tuple_of(Vec::new())?,
            b'(' => Value::Mark,
            b'N' => Value::None,
            0x88 | 0x89 => Value::Bool,
            // BININT, BININT1, BININT2, LONG1, BINUNICODE
            b'J' => self.integer::<4>()?,
            b'K' => self.integer::<1>()?,
            b'M' => self.integer::<2>()?,
            0x8a => self.long()?,
            b'X' => self.text()?,
            // GLOBAL, BINPERSID, REDUCE
            b'c' => self.global()?,
            b'Q' => self.persistent()?,
            b'R' => self.reduce()?,
            // BINGET, LONG_BINGET
            b'h' | b'j' => self.get(opcode == b'j')?,
            // TUPLE, TUPLE1 to TUPLE3
            b't' => {
                let items = self.pop_to_mark()?;
                self.tuple_of(items)?
            }
            0x85..=0x87 => self.last_as_tuple(usize::from(opcode - 0x84))?,
            _ => return Err(FormatError::Opcode { position, opcode }),
        };
        self.stack.push(value);
        Ok(())
    }

    fn pop(&mut self) -> Result<Value, FormatError> {
        self.stack.pop().ok_or_else(|| self.damaged("the stack is empty"))
    }

    fn pop_to_mark(&mut self) -> Result<Vec<Value>, FormatError> {
        let mark = self.stack.iter().rposition(|value| matches!(value, Value::Mark));
        let mark = mark.ok_or_else(|| self.damaged("a mark is missing"))?;
        let items = self.stack.split_off(mark + 1);
        self.pop()?;
        Ok(items)
    }

    fn take(&mut self, count: usize) -> Result<&'a [u8], FormatError> {
        let end = self.position.checked_add(count).filter(|end| *end <= self.bytes.len());
        let Some(end) = end else {
            let (needed, found) = (self.position as u64 + count as u64, self.bytes.len() as u64);
            return Err(FormatError::Truncated { what: "the pickle".to_owned(), needed, found });
        };
        let taken = &self.bytes[self.position..end];
        self.position = end;
        Ok(taken)
    }

    fn byte(&mut self) -> Result<u8, FormatError> {
        Ok(self.take(1)?[0])
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], FormatError> {
        Ok(self.take(N)?.try_into().expect("take gives as many bytes as asked"))
    }

    /// Little-endian integers; only those of four bytes are signed.
    fn integer<const N: usize>(&mut self) -> Result<Value, FormatError> {
        let bytes = self.array::<N>()?;
        let mut wide = [0; 8];
        wide[..N].copy_from_slice(&bytes);
        let value = i64::from_le_bytes(wide);
        let value = if N == 4 && value > i64::from(i32::MAX) { value - (1 << 32) } else { value };
        Ok(Value::Int(value))
    }

    fn long(&mut self) -> Result<Value, FormatError> {
        let length = usize::from(self.byte()?);
        if length > 8 {
            return Err(self.damaged("an integer of more than 64 bits"));
        }
        let bytes = self.take(length)?;
        let negative = bytes.last().is_some_and(|byte| byte & 0x80 != 0);
        let mut wide = if negative { [0xff; 8] } else { [0; 8] };
        wide[..length].copy_from_slice(bytes);
        Ok(Value::Int(i64::from_le_bytes(wide)))
    }

    fn text(&mut self) -> Result<Value, FormatError> {
        let length = u32::from_le_bytes(self.array::<4>()?);
        let bytes = self.take(length as usize)?.to_vec();
        let text = String::from_utf8(bytes).map_err(|_| self.damaged("a text is not UTF-8"))?;
        Ok(Value::Text(text.into()))
    }

    fn line(&mut self) -> Result<String, FormatError> {
        let rest = &self.bytes[self.position..];
        let end = rest.iter().position(|byte| *byte == b'\n').ok_or_else(|| self.damaged("a name has no end"))?;
        let line = String::from_utf8_lossy(&rest[..end]).into_owned();
        self.position += end + 1;
        Ok(line)
    }

    fn global(&mut self) -> Result<Value, FormatError> {
        let (module, name) = (self.line()?, self.line()?);
        Ok(Value::Global(Global::find(&module, &name)?))
    }

    fn put(&mut self, long: bool) -> Result<(), FormatError> {
        let index = if long { u32::from_le_bytes(self.array()?) } else { u32::from(self.byte()?) };
        let value = self.stack.last().cloned().ok_or_else(|| self.damaged("the stack is empty"))?;
        self.memo.insert(index, value);
        Ok(())
    }

    fn get(&mut self, long: bool) -> Result<Value, FormatError> {
        let index = if long { u32::from_le_bytes(self.array()?) } else { u32::from(self.byte()?) };
        let value = self.memo.get(&index).cloned();
        value.ok_or_else(|| self.damaged(&format!("memo {index} was never stored")))
    }

    fn last_as_tuple(&mut self, count: usize) -> Result<Value, FormatError> {
        let start = self.stack.len().checked_sub(count).ok_or_else(|| self.damaged("the stack is empty"))?;
        let items = self.stack.split_off(start);
        self.tuple_of(items)
    }

    fn tuple_of(&self, items: Vec<Value>) -> Result<Value, FormatError> {
        let depth = |item: &Value| if let Value::Tuple(_, depth) = item { *depth } else { 0 };
        let depth = 1 + items.iter().map(depth).max().unwrap_or(0);
        if depth > DEEPEST_TUPLE {
            return Err(self.damaged(&format!("tuples nest more than {DEEPEST_TUPLE} deep")));
        }
        Ok(Value::Tuple(items.into(), depth))
    }

    fn new_dictionary(&mut self) -> Value {
        self.dictionaries.push(Vec::new());
        Value::Dictionary(self.dictionaries.len() - 1)
    }

    fn set_items(&mut self, items: Vec<Value>) -> Result<(), FormatError> {
        let Some(Value::Dictionary(index)) = self.stack.last() else {
            return Err(self.damaged("items are set on what is no dictionary"));
        };
        let index = *index;
        if !items.len().is_multiple_of(2) {
            return Err(self.damaged("a key has no value"));
        }
        let mut items = items.into_iter();
        while let (Some(key), Some(value)) = (items.next(), items.next()) {
            self.dictionaries[index].push((key, value));
        }
        Ok(())
    }

    /// `("storage", storage type, key, location, elements)`
    fn persistent(&mut self) -> Result<Value, FormatError> {
        let Value::Tuple(id, _) = self.pop()? else { return Err(self.damaged("a storage's id is no tuple")) };
        let [Value::Text(kind), Value::Global(Global::Storage(dtype)), Value::Text(key), _, Value::Int(elements)] =
            &*id
        else {
            return Err(self.damaged("a storage's id has another form"));
        };
        if &**kind != "storage" {
            return Err(self.damaged("a persistent object is no storage"));
        }
        let storage = Storage { key: key.clone(), dtype: *dtype, elements: *elements };
        Ok(Value::Storage(Rc::new(storage)))
    }

    fn reduce(&mut self) -> Result<Value, FormatError> {
        let Value::Tuple(arguments, _) = self.pop()? else { return Err(self.damaged("arguments are no tuple")) };
        match self.pop()? {
            Value::Global(Global::OrderedDict) if arguments.is_empty() => Ok(self.new_dictionary()),
            Value::Global(Global::RebuildTensor) => self.tensor(&arguments),
            _ => Err(self.damaged("a call of what is no known function")),
        }
    }

    /// `(storage, offset, shape, strides, requires_grad, hooks)`
    fn tensor(&self, arguments: &[Value]) -> Result<Value, FormatError> {
        let [Value::Storage(storage), Value::Int(offset), Value::Tuple(shape, _), Value::Tuple(strides, _), ..] =
            arguments
        else {
            return Err(self.damaged("a tensor has another form"));
        };
        if shape.len() > MOST_DIMENSIONS || shape.len() != strides.len() {
            let problem = format!("a tensor of {} dimensions and {} strides", shape.len(), strides.len());
            return Err(self.damaged(&problem));
        }
        let integers = |values: &[Value]| {
            let integer = |value: &Value| if let Value::Int(integer) = value { Some(*integer) } else { None };
            values.iter().map(integer).collect::<Option<Vec<_>>>().ok_or_else(|| self.damaged("a size is no integer"))
        };
        let (shape, strides) = (integers(shape)?, integers(strides)?);
        Ok(Value::Tensor(Rc::new(TensorRecord { storage: storage.clone(), offset: *offset, shape, strides })))
    }

    /// State of an ordered dictionary (`_metadata` of a module), which carries no tensor.
    fn build(&mut self) -> Result<(), FormatError> {
        self.pop()?;
        match self.stack.last() {
            Some(Value::Dictionary(_)) => Ok(()),
            _ => Err(self.damaged("state is set on what is no dictionary")),
        }
    }
}
