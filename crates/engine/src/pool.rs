use tandem_step::Pool;

/// The blocks of one pool and who wants them: requests (and steps in flight) *hold* a block, the prefix cache *keeps*
/// it. A block nobody holds or keeps is free; one that is only kept can be evicted.
pub(crate) struct BlockPool {
    holds: Vec<u32>,
    keeps: Vec<u32>,
    free: Vec<u32>,
    held: u32,
}

impl BlockPool {
    pub(crate) fn new(blocks: u32) -> Self {
        Self {
            holds: vec![0; blocks as usize],
            keeps: vec![0; blocks as usize],
            free: (0..blocks).rev().collect(),
            held: 0,
        }
    }

    /// Takes a free block and holds it.
    pub(crate) fn take(&mut self) -> Option<u32> {
        let block = self.free.pop()?;
        self.hold(block);
        Some(block)
    }

    pub(crate) fn hold(&mut self, block: u32) {
        let holds = &mut self.holds[block as usize];
        self.held += u32::from(*holds == 0);
        *holds += 1;
    }

    pub(crate) fn release(&mut self, block: u32) {
        let holds = &mut self.holds[block as usize];
        *holds -= 1;
        if *holds == 0 {
            self.held -= 1;
            self.free_if_unwanted(block);
        }
    }

    pub(crate) fn keep(&mut self, block: u32) {
        self.keeps[block as usize] += 1;
    }

    pub(crate) fn unkeep(&mut self, block: u32) {
        self.keeps[block as usize] -= 1;
        self.free_if_unwanted(block);
    }

    fn free_if_unwanted(&mut self, block: u32) {
        if self.holds[block as usize] == 0 && self.keeps[block as usize] == 0 {
            self.free.push(block);
        }
    }

    pub(crate) fn is_held(&self, block: u32) -> bool {
        self.holds[block as usize] > 0
    }

    pub(crate) fn total(&self) -> u32 {
        self.holds.len() as u32
    }

    /// Blocks that requests or steps in flight hold.
    pub(crate) fn held(&self) -> u32 {
        self.held
    }

    pub(crate) fn free(&self) -> u32 {
        self.free.len() as u32
    }

    /// Blocks that are free or could be, by eviction.
    pub(crate) fn available(&self) -> u32 {
        self.total() - self.held
    }

    /// Compares the books with counts made from the outside.
    pub(crate) fn audit(&self, pool: Pool, holds: &[u32], keeps: &[u32]) -> Result<(), String> {
        let mut free = vec![false; self.holds.len()];
        for &block in &self.free {
            if std::mem::replace(&mut free[block as usize], true) {
                return Err(format!("{pool:?} block {block} is free twice"));
            }
        }
        for block in 0..self.holds.len() {
            if self.holds[block] != holds[block] || self.keeps[block] != keeps[block] {
                return Err(format!(
                    "{pool:?} block {block}: {} holds and {} keeps counted, {} and {} found",
                    self.holds[block], self.keeps[block], holds[block], keeps[block]
                ));
            }
            if free[block] != (holds[block] == 0 && keeps[block] == 0) {
                return Err(format!("{pool:?} block {block} leaked or is free while wanted"));
            }
        }
        match holds.iter().filter(|holds| **holds > 0).count() as u32 == self.held {
            true => Ok(()),
            false => Err(format!("{pool:?} pool: the number of held blocks is wrong")),
        }
    }
}

/// Both pools.
pub(crate) struct Pools {
    pub(crate) full: BlockPool,
    pub(crate) sliding: BlockPool,
}

impl Pools {
    pub(crate) fn of(&self, pool: Pool) -> &BlockPool {
        match pool {
            Pool::Full => &self.full,
            Pool::Sliding => &self.sliding,
        }
    }

    pub(crate) fn of_mut(&mut self, pool: Pool) -> &mut BlockPool {
        match pool {
            Pool::Full => &mut self.full,
            Pool::Sliding => &mut self.sliding,
        }
    }
}
