package groups

import (
	"context"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/tabard-id/tabard/internal/store"
)

type Service struct{ cfg Config }

func Open(ctx context.Context, st store.Store, trail Trail, cfg Config, log logrus.FieldLogger) (*Service, error) {
	return &Service{cfg}, nil
}
func (s *Service) Close()                                { panic("soon") }
func (s *Service) IsAdmin(a Actor) bool                  { panic("soon") }
func (s *Service) RightsOn(a Actor, name string) Rights  { panic("soon") }
func (s *Service) Of(sub string, directoryGroups []string, now time.Time) ([]Effective, error) {
	panic("soon")
}
func (s *Service) Why(ctx context.Context, sub string, directoryGroups []string) ([]Path, error) {
	panic("soon")
}
func (s *Service) List(ctx context.Context, a Actor, f Filter, p Page) ([]Group, string, error) {
	panic("soon")
}
func (s *Service) Get(ctx context.Context, a Actor, name string) (Group, error) { panic("soon") }
func (s *Service) Members(ctx context.Context, a Actor, name string, f MemberFilter, p Page) ([]Member, string, error) {
	panic("soon")
}
func (s *Service) Member(ctx context.Context, a Actor, name string, kind Kind, id string) (Member, error) {
	panic("soon")
}
func (s *Service) Containing(a Actor, name string) []string { panic("soon") }
func (s *Service) Everyone(ctx context.Context, a Actor, name string, limit int) ([]Reach, bool, error) {
	panic("soon")
}
func (s *Service) Create(ctx context.Context, a Actor, set Settings) (Group, error) { panic("soon") }
func (s *Service) Edit(ctx context.Context, a Actor, name string, revision int64, c Change) (Group, error) {
	panic("soon")
}
func (s *Service) Delete(ctx context.Context, a Actor, name string, revision int64, contained bool) error {
	panic("soon")
}
func (s *Service) Add(ctx context.Context, a Actor, name string, revision int64, m Member) (Group, error) {
	panic("soon")
}
func (s *Service) Remove(ctx context.Context, a Actor, name string, revision int64, kind Kind, id string) (Group, error) {
	panic("soon")
}
func (s *Service) Lookalikes(name string) []string { panic("soon") }
func (s *Service) Export(ctx context.Context, a Actor, f Filter, fn func(File) error) error {
	panic("soon")
}
func (s *Service) Apply(ctx context.Context, a Actor, files []File, o ApplyOptions) ([]Applied, error) {
	panic("soon")
}
