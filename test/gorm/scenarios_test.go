package gorm

import (
	"context"
	"errors"
	"fmt"
	"time"

	"gorm.io/gorm"
	"gorm.io/gorm/clause"
)

// scenario is something an application does. What it returns is compared with what it returns on plain SQLite.
type scenario struct {
	name string
	run  func(db *gorm.DB) (any, error)
}

func ptr[T any](v T) *T { return &v }

var scenarios = []scenario{
	{"create with all associations", func(db *gorm.DB) (any, error) {
		u := User{
			Name: "ada", Age: 36, Mail: ptr("ada@example.com"), Birthday: ptr(time.Date(1815, 12, 10, 0, 0, 0, 0, time.UTC)),
			Settings: map[string]string{"theme": "dark"}, Secret: []byte{0, 1, 2, 255},
			Address: Address{"Main Street", "London"}, Company: &Company{Name: "Analytical"},
			Profile: &Profile{Bio: "first"}, Tags: []Tag{{Name: "math"}, {Name: "engine"}},
			Friends: []User{{Name: "charles"}, {Name: "mary"}}, Notes: []Note{{Text: "note G"}},
			Team: []User{{Name: "annabella"}},
		}
		err := db.Create(&u).Error
		return u.ID, err
	}},
	{"preload everything", func(db *gorm.DB) (any, error) {
		var u User
		err := db.Preload(clause.Associations).Preload("Friends.Tags").First(&u, "name = ?", "ada").Error
		return u, err
	}},
	{"create in batches", func(db *gorm.DB) (any, error) {
		users := make([]User, 250)
		for i := range users {
			users[i] = User{Name: fmt.Sprintf("user %03d", i), Age: i % 90, Balance: int64(i)}
		}
		result := db.CreateInBatches(users, 40)
		return result.RowsAffected, result.Error
	}},
	{"find in batches and update", func(db *gorm.DB) (any, error) {
		var page []User
		total := 0
		err := db.Where("name LIKE ?", "user %").FindInBatches(&page, 60, func(tx *gorm.DB, _ int) error {
			for i := range page {
				page[i].Balance *= 2
			}
			total += len(page)
			return tx.Save(&page).Error
		}).Error
		return total, err
	}},
	{"update with a hook", func(db *gorm.DB) (any, error) {
		var u User
		if err := db.First(&u, "name = ?", "ada").Error; err != nil {
			return nil, err
		}
		err := db.Model(&u).Updates(map[string]any{"age": 37, "home_city": "Ockham"}).Error
		return []any{u.Hooked, u.Age}, err
	}},
	{"update by expression", func(db *gorm.DB) (any, error) {
		result := db.Model(&User{}).Where("age > ?", 50).UpdateColumn("balance", gorm.Expr("balance + ?", 5))
		return result.RowsAffected, result.Error
	}},
	{"a hook refuses", func(db *gorm.DB) (any, error) {
		err := db.Create(&[]User{{Name: "fine before"}, {Name: "refused"}}).Error
		var left int64
		count := db.Model(&User{}).Where("name = ?", "fine before").Count(&left).Error
		return []any{errors.Is(err, errRefused), left}, count
	}},
	{"a constraint refuses", func(db *gorm.DB) (any, error) {
		duplicate := db.Create(&User{Name: "ada 2", Mail: ptr("ada@example.com")}).Error
		check := db.Create(&User{Name: "", Age: 1}).Error
		return []string{duplicate.Error(), check.Error()}, nil
	}},
	{"upsert", func(db *gorm.DB) (any, error) {
		for i, name := range []string{"Analytical", "Difference", "Analytical"} {
			err := db.Clauses(clause.OnConflict{
				Columns: []clause.Column{{Name: "name"}}, DoUpdates: clause.Assignments(map[string]any{"name": fmt.Sprintf("%s %d", name, i)}),
			}).Create(&Company{Name: name}).Error
			if err != nil {
				return nil, err
			}
		}
		err := db.Clauses(clause.OnConflict{DoNothing: true}).Create(&Tag{Name: "math"}).Error
		var names []string
		return &names, errors.Join(err, db.Model(&Company{}).Order("id").Pluck("name", &names).Error)
	}},
	{"returning", func(db *gorm.DB) (any, error) {
		var users []User
		err := db.Model(&users).Clauses(clause.Returning{Columns: []clause.Column{{Name: "id"}, {Name: "balance"}}}).
			Where("age = ?", 3).Update("balance", gorm.Expr("balance * 10")).Error
		return users, err
	}},
	{"transaction that commits", func(db *gorm.DB) (any, error) {
		return nil, db.Transaction(func(tx *gorm.DB) error {
			if err := tx.Model(&User{}).Where("name = ?", "ada").Update("balance", gorm.Expr("balance - 100")).Error; err != nil {
				return err
			}
			return tx.Model(&User{}).Where("name = ?", "mary").Update("balance", gorm.Expr("balance + 100")).Error
		})
	}},
	{"transaction that is rolled back", func(db *gorm.DB) (any, error) {
		stop := errors.New("stop")
		err := db.Transaction(func(tx *gorm.DB) error {
			if err := tx.Where("1 = 1").Delete(&Note{}).Error; err != nil {
				return err
			}
			return stop
		})
		var left int64
		return []any{errors.Is(err, stop), &left}, db.Model(&Note{}).Count(&left).Error
	}},
	{"nested transactions and savepoints", func(db *gorm.DB) (any, error) {
		err := db.Transaction(func(tx *gorm.DB) error {
			if err := tx.Create(&Tag{Name: "outer"}).Error; err != nil {
				return err
			}
			inner := tx.Transaction(func(tx2 *gorm.DB) error {
				return errors.Join(tx2.Create(&Tag{Name: "inner"}).Error, errors.New("only the inner one"))
			})
			if inner == nil {
				return errors.New("the inner transaction gave no error")
			}
			if err := tx.SavePoint("here").Error; err != nil {
				return err
			}
			if err := tx.Create(&Tag{Name: "after here"}).Error; err != nil {
				return err
			}
			return tx.RollbackTo("here").Error
		})
		var names []string
		return &names, errors.Join(err, db.Model(&Tag{}).Order("name").Pluck("name", &names).Error)
	}},
	{"manual transaction", func(db *gorm.DB) (any, error) {
		tx := db.Begin()
		if tx.Error != nil {
			return nil, tx.Error
		}
		if err := tx.Create(&Note{Text: "by hand", OwnerType: "users", OwnerID: 1}).Error; err != nil {
			return nil, errors.Join(err, tx.Rollback().Error)
		}
		return nil, tx.Commit().Error
	}},
	{"association append, replace, delete, clear, count", func(db *gorm.DB) (any, error) {
		var u User
		if err := db.First(&u, "name = ?", "ada").Error; err != nil {
			return nil, err
		}
		tags := func() *gorm.Association { return db.Model(&u).Association("Tags") }
		err := errors.Join(
			tags().Append(&Tag{Name: "poetry"}),
			tags().Replace([]Tag{{Name: "poetry"}, {Name: "flying"}, {Name: "math"}}),
			tags().Delete([]Tag{{Name: "flying"}}),
			db.Model(&u).Association("Friends").Clear(),
			db.Model(&u).Association("Profile").Replace(&Profile{Bio: "second"}),
		)
		return []int64{tags().Count(), db.Model(&u).Association("Friends").Count()}, err
	}},
	{"joins, groups and subqueries", func(db *gorm.DB) (any, error) {
		var rows []struct {
			Age   int
			Count int
			Sum   int64
		}
		sub := db.Model(&User{}).Select("avg(balance)")
		err := db.Model(&User{}).Select("age, count(*) AS count, sum(balance) AS sum").Where("balance > (?)", sub).
			Group("age").Having("count(*) > ?", 1).Order("age").Scan(&rows).Error
		var users []User
		err2 := db.Joins("Company").Joins("Profile").Where(`"Company"."name" IS NOT NULL`).Order("users.id").Find(&users).Error
		return []any{rows, users}, errors.Join(err, err2)
	}},
	{"soft delete and unscoped", func(db *gorm.DB) (any, error) {
		if err := db.Where("name = ?", "charles").Delete(&User{}).Error; err != nil {
			return nil, err
		}
		var seen, all int64
		err := errors.Join(db.Model(&User{}).Where("name = ?", "charles").Count(&seen).Error,
			db.Unscoped().Model(&User{}).Where("name = ?", "charles").Count(&all).Error,
			db.Unscoped().Where("name = ?", "user 249").Delete(&User{}).Error)
		return []int64{seen, all}, err
	}},
	{"first or create, first or init", func(db *gorm.DB) (any, error) {
		var a, b User
		err := errors.Join(db.Where(User{Name: "grace"}).Attrs(User{Age: 85}).FirstOrCreate(&a).Error,
			db.Where(User{Name: "grace"}).Assign(User{Age: 86}).FirstOrCreate(&b).Error)
		return []any{a.ID == b.ID, b.Age}, err
	}},
	{"raw statements and named arguments", func(db *gorm.DB) (any, error) {
		err := db.Exec("UPDATE users SET balance = @n WHERE name = @who", map[string]any{"n": 7, "who": "grace"}).Error
		var got int64
		return &got, errors.Join(err, db.Raw("SELECT balance FROM users WHERE name = ?", "grace").Scan(&got).Error)
	}},
	{"prepared statements", func(db *gorm.DB) (any, error) {
		p := db.Session(&gorm.Session{PrepareStmt: true})
		var sum int64
		for i := range 20 {
			var n int64
			if err := p.Model(&User{}).Where("age = ?", i).Count(&n).Error; err != nil {
				return nil, err
			}
			if err := p.Create(&Note{Text: fmt.Sprintf("prepared %d", i), OwnerType: "companies", OwnerID: 1}).Error; err != nil {
				return nil, err
			}
			sum += n
		}
		return sum, nil
	}},
	{"generics", func(db *gorm.DB) (any, error) {
		ctx := context.Background()
		if err := gorm.G[Tag](db).Create(ctx, &Tag{Name: "generic"}); err != nil {
			return nil, err
		}
		return gorm.G[Tag](db).Where("name >= ?", "f").Order("name").Find(ctx)
	}},
	{"migration adds and drops columns and indexes", func(db *gorm.DB) (any, error) {
		type Profile struct {
			ID      uint
			UserID  *uint `gorm:"index"`
			Bio     string
			Motto   string `gorm:"index;default:none"`
			Visited int64  `gorm:"not null;default:3"`
		}
		m := db.Migrator()
		err := errors.Join(db.AutoMigrate(&Profile{}), m.RenameColumn(&Profile{}, "motto", "device"), m.DropColumn(&Profile{}, "visited"),
			m.CreateIndex(&Company{}, "Name"))
		return []bool{m.HasColumn(&Profile{}, "device"), m.HasColumn(&Profile{}, "visited"), m.HasTable("user_tags")}, ignoreExisting(err)
	}},
	{"migration changes the type of a column", func(db *gorm.DB) (any, error) {
		type Note struct {
			ID        uint
			Text      string `gorm:"type:varchar(500);not null"`
			OwnerID   uint
			OwnerType string
		}
		if err := db.Migrator().AlterColumn(&Note{}, "Text"); err != nil {
			return nil, err
		}
		var n int64
		err := db.Model(&Note{}).Count(&n).Error
		return n, err
	}},
	{"a table comes, is renamed, and goes", func(db *gorm.DB) (any, error) {
		type Passing struct{ ID, N int }
		m := db.Migrator()
		err := errors.Join(m.CreateTable(&Passing{}), db.Create(&[]Passing{{N: 1}, {N: 2}}).Error, m.RenameTable("passings", "passed"))
		var sum int
		err = errors.Join(err, db.Table("passed").Select("sum(n)").Scan(&sum).Error, m.DropTable("passed"))
		return sum, err
	}},
}

// ignoreExisting drops the error of an index that is there: both sides have it.
func ignoreExisting(err error) error {
	if err != nil && err.Error() == "index idx_companies_name already exists" {
		return nil
	}
	return err
}
